"""Rows of other packages: an installed plugin in every command, and rejected ones."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsdr
from fedsdr import compatibility, plugins
from fedsdr.config import Settings
from fedsdr.data.examples import Example
from fedsdr.distill.prompts import rewriting_turns
from fedsdr.errors import UserError
from fedsdr.methods import AGGREGATIONS, METHODS, OPTIMIZERS, PROMPTS
from fedsdr.rows import Aggregation, Method, Optimizer, Rewriter, Stage
from fedsdr.run_folder import RunFolder
from fedsdr.server.aggregate import Target
from fedsdr.storage import read_lines

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "fedsdr-loud"
version = "1.2"

[project.entry-points."fedsdr.methods"]
shared-then-private = "fedsdr_loud"

[project.entry-points."fedsdr.aggregations"]
equal = "fedsdr_loud"

[project.entry-points."fedsdr.server_optimizers"]
half = "fedsdr_loud"

[project.entry-points."fedsdr.rewriters"]
shout = "fedsdr_loud"

[tool.setuptools]
py-modules = ["fedsdr_loud"]
"""
PLUGIN = """
import numpy as np

from fedsdr import register
from fedsdr.rows import Aggregation, Method, Rewriter, Optimizer, Stage
from fedsdr.server.aggregate import Target

BOTH = ("shared", "private")
stages = (Stage(("shared",), "distilled", ("shared",)), Stage(("private",), "raw", BOTH))
register("shared-then-private", Method("the shared adapter first", "ours", stages))


@register("equal", Aggregation("every client weighs the same", "ours"))
def equal(updates, server, before):
    some = [update.arrays for update in updates]
    return Target({key: np.mean([one[key] for one in some], axis=0) for key in before.shared}, {})


@register("half", Optimizer("half of the way to the target", "ours", reads=()))
def half(current, target, moments, server):
    return {key: ((value + target[key]) / 2).astype(np.float32) for key, value in current.items()}, {}


@register("shout", Rewriter("asks for capital letters", "ours"))
def shout(example):
    return [{"role": "user", "content": "In capital letters: " + example.response}]
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return `command(*words)`: standard output of fedsdr in an environment with the plugin."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "fedsdr_loud.py").write_text(PLUGIN)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    path = os.pathsep.join([str(target), os.environ.get("PYTHONPATH", "")])

    def run(*words: str, code: int = 0, without: bool = False) -> str:
        own = os.environ if without else os.environ | {"PYTHONPATH": path}
        full = [sys.executable, "-m", "fedsdr.cli", *words]
        done = subprocess.run(full, env=own, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    path = tmp_path / "loud.toml"
    path.write_text(f"""
method = "shared-then-private"
[server]
aggregation = "equal"
optimizer = "half"
num_rounds = 2
[distill]
prompts = ["shout"]
verify = "off"
max_new_tokens = 4
[model]
name = "{tiny_folder}"
dtype = "float32"
max_length = 384
[data]
domains = ["finance", "math"]
num_train = 4
num_test = 2
[client]
local_steps = 2
batch_size = 2
[eval]
rewritings = false
max_new_tokens = 2
[run]
threads = 1
""")
    return path


def test_rows_of_an_installed_package_are_listed_with_where_they_come_from(command):
    text = command("methods")
    for name in ("shared-then-private", "equal", "half", "shout"):
        assert f"  {name} " in text
    assert text.count("ours (fedsdr-loud 1.2)") == 4
    pairs = json.loads(command("methods", "--json"))["pairs"]
    assert pairs["server.aggregation"]["equal"]["server.robust"] == ["none"]
    assert "fedadam" in pairs["server.aggregation"]["equal"]["server.optimizer"]


def test_a_run_on_rows_of_a_package_is_made_resumed_reported_and_compared(command, recipe, tmp_path):
    folder = tmp_path / "run"
    command("run", str(recipe), f"run.dir={folder}")
    run = RunFolder(folder)
    versions = json.loads(run.environment.read_text())["versions"]
    assert "method = shared-then-private of fedsdr-loud 1.2" in versions["plugins"]
    assert "server.aggregation = equal of fedsdr-loud 1.2" in versions["plugins"]
    trained = next(event for event in read_lines(run.log) if event["event"] == "train")
    assert [key for key in trained if key.endswith("/last_loss")] == [
        "train/shared/last_loss",
        "train/private/last_loss",
    ]
    command("resume", str(folder))
    assert command("report", str(folder)).strip() == str(run.report)
    assert "equal" in run.report.read_text()
    grid = tmp_path / "grid.toml"
    grid.write_text(
        f'recipe = "{recipe}"\nbaseline = "plain"\nseeds = [0]\n'
        '[arms]\nplain = {"server.optimizer" = "fedavg"}\nloud = {}\n'
    )
    tables = json.loads(
        command("compare", str(grid), "--to", str(tmp_path / "grid"), "--jobs", "2", "--json")
    )
    assert "loud" in json.dumps(tables)
    in_grid = tmp_path / "grid/loud/seed-0/server/round-0002/adapter_model.safetensors"
    alone = folder / "server/round-0002/adapter_model.safetensors"
    assert in_grid.read_bytes() == alone.read_bytes()


def test_a_run_is_not_resumed_without_the_package_or_with_another_version(command, recipe, tmp_path):
    folder = tmp_path / "run"
    command("run", str(recipe), f"run.dir={folder}", "method=fedit", "server.num_rounds=1")
    error = command("resume", str(folder), code=2, without=True)
    assert "server.aggregation = 'equal' was registered when the run began" in error
    assert "install fedsdr-loud 1.2" in error
    environment = RunFolder(folder).environment
    environment.write_text(environment.read_text().replace("fedsdr-loud 1.2", "fedsdr-loud 1.1"))
    error = command("resume", str(folder), code=2)
    assert "cannot continue: versions plugins was" in error
    assert "fedsdr-loud 1.1" in error
    assert "fedsdr-loud 1.2" in error


@pytest.fixture
def own_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rows that a test registers are gone after it."""
    tables: list[dict[Any, Any]] = [METHODS, AGGREGATIONS, OPTIMIZERS, PROMPTS, plugins.ORIGINS]
    tables += plugins.FUNCTIONS.values()
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


def test_a_program_may_register_rows_and_do_so_again(own_rows, tiny_settings):
    seen = []
    for _ in range(2):  # a cell of a notebook is run twice

        @fedsdr.register("last", Aggregation("the last client alone", "ours", is_linear=False))
        def last(updates: Any, server: Any, before: Any) -> Target:
            *_, one = updates
            seen.append(one.arrays)
            return Target(one.arrays, {})

    quick = {
        "method": "fedit",
        "data.domains": ["finance", "math"],
        "eval.rewritings": False,
        "eval.max_new_tokens": 2,
        "server.num_rounds": 1,
    }
    settings = tiny_settings(**quick, **{"server.aggregation": "last", "server.keep_updates": True})
    result = fedsdr.run(settings)
    from safetensors.numpy import load_file

    final = load_file(result.adapter / "adapter_model.safetensors")
    assert all(np.array_equal(final[key], value) for key, value in seen[-1].items())
    plain = fedsdr.run(tiny_settings(**quick))
    other = load_file(plain.adapter / "adapter_model.safetensors")
    assert any(not np.array_equal(final[key], other[key]) for key in final)
    with pytest.raises(UserError, match=r"server\.optimizer = 'fedadam' does not go with"):
        tiny_settings(**quick, **{"server.aggregation": "last", "server.optimizer": "fedadam"})
    with pytest.raises(UserError, match=r"server\.robust = 'median' does not go with"):
        tiny_settings(**quick, **{"server.aggregation": "last", "server.robust": "median"})


def test_a_built_in_row_cannot_be_replaced_and_a_name_must_name_a_folder(own_rows):
    with pytest.raises(UserError, match=r"server\.optimizer = 'fedavg' is a built-in row"):
        fedsdr.register("fedavg", Optimizer("mine", "ours"))
    with pytest.raises(UserError, match=r"method 'my method': expected letters"):
        fedsdr.register("my method", Method("mine", "ours", (Stage(("shared",), "raw", ("shared",)),)))


def test_a_rewriter_that_says_other_words_asks_the_model_anew(own_rows, tiny_settings):
    words = "Say:"

    @fedsdr.register("mine", Rewriter("asks as the test says", "ours"))
    def mine(example: Example) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{words} {example.response}"}]

    example = Example("Who?", "Nobody.", "general")
    assert rewriting_turns("mine", example) == [{"role": "user", "content": "Say: Nobody."}]
    quick = {
        "data.domains": ["math"],
        "server.num_rounds": 1,
        "distill.prompts": ["mine"],
        "eval.rewritings": False,
    }

    def files(settings: Settings) -> set[str]:
        fedsdr.run(settings)
        return {path.name for path in Path(settings.run.cache).rglob("mine-*.jsonl")}

    cache = tiny_settings().run.dir
    of = lambda: tiny_settings(method="fedsd", **quick, **{"run.cache": cache})  # noqa: E731
    first = files(of())
    assert len(first) == 1
    assert files(of()) == first
    words = "Repeat:"
    assert len(files(of())) == 2


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise OSError('no GPU')", "cannot be imported: OSError: no GPU"),
        ("", "registers no server.aggregation 'mine'"),
        # What it registered before it failed may be half of what it needs.
        (
            "import fedsdr\nfrom fedsdr.rows import Rewriter\n"
            "@fedsdr.register('mine', Rewriter('x', 'y'))\ndef f(e): ...\nraise OSError('late')",
            "cannot be imported: OSError: late",
        ),
    ],
)
def test_a_broken_plugin_stops_only_what_asks_for_its_rows(
    own_rows, monkeypatch, tmp_path, caplog, module: str, reason: str
):
    (tmp_path / "broken_plugin.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    point = EntryPoint("mine", "broken_plugin", "fedsdr.aggregations")
    found = {"fedsdr.aggregations": [point, point]}
    monkeypatch.setattr(plugins, "entry_points", lambda group: found.get(group, []))
    monkeypatch.setattr(plugins, "_state", plugins._State())
    monkeypatch.setattr(plugins, "BROKEN", {})
    assert "  mine " not in compatibility.as_text()
    (warning,) = caplog.records
    assert f"plugin broken_plugin: broken_plugin {reason}; the plugin is skipped" in warning.getMessage()
    Settings()
    with pytest.raises(UserError, match=rf"server\.aggregation = 'mine' is unavailable: .* {reason}"):
        Settings.model_validate({"server": {"aggregation": "mine"}})


def test_a_run_whose_row_a_program_registered_is_read_everywhere_and_resumed_only_with_it(
    own_rows, tiny_settings, tmp_path
):
    @fedsdr.register("last", Aggregation("the last client alone", "ours", is_linear=False))
    def last(updates: Any, server: Any, before: Any) -> Target:
        *_, one = updates
        return Target(one.arrays, {})

    both = ("shared", "private")
    fedsdr.register("mine", Method("raw alone", "ours", (Stage(("shared",), "raw", both, drop=0.5),)))
    values = {"data.domains": ["math"], "eval.rewritings": False, "server.num_rounds": 1}
    folder = fedsdr.run(tiny_settings(method="mine", **values, **{"server.aggregation": "last"})).folder

    def command(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "fedsdr.cli", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        return done.stderr

    command("report", str(folder))
    command("export", str(folder), str(tmp_path / "exported"))
    assert "last" in (tmp_path / "exported" / "README.md").read_text()
    error = command("resume", str(folder), code=2)
    assert "server.aggregation = 'last' was registered when the run began" in error
    assert "fedsdr.resume, docs/python.md" in error
    fedsdr.resume(folder)
    fedsdr.register("mine", Method("raw alone", "ours", (Stage(("shared",), "raw", both),)))
    with pytest.raises(UserError, match="settings rows was"):
        fedsdr.resume(folder)
