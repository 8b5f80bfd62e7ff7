"""The commands from a user's view: output, its destination, and how mistakes end."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsdr import methods
from fedsdr.cli import main
from fedsdr.config import Settings
from fedsdr.recipe import dump_settings

Fedsdr = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fedsdr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fedsdr:
    """Run a command in this process: exit code, standard output, standard error."""

    def command(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        return int(end.value.code or 0), *capsys.readouterr()

    return command


@pytest.fixture(scope="module")
def recipe(tiny_settings: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = tiny_settings(
        **{"data.domains": ["finance", "math"], "server.num_rounds": 1, "eval.max_new_tokens": 2}
    )
    path = tmp_path_factory.mktemp("recipe") / "quick.toml"
    path.write_text(dump_settings(settings))
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "one"
    with pytest.raises(SystemExit) as end:
        main(["run", str(recipe), f"run.dir={folder}", "--quiet"])
    assert not end.value.code
    return folder


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom fedsdr.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'transformers', 'flwr', 'numpy', 'pydantic'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"
    commands = ("run", "resume", "evaluate", "data", "methods", "models", "chat", "export", "report")
    assert all(re.search(rf"^\W*{command} ", done.stdout, re.MULTILINE) for command in commands)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("server.clients_per_round=9", "there are 5 clients"),
        ("data.root=nowhere", "is not a folder"),
        ("run.log_to=[trackio,wandb]", "requires trackio,wandb"),
        ("partition.num_clients=2", "num_clients"),
    ],
)
def test_a_refused_run_makes_no_folder_and_loads_no_torch(tmp_path: Path, word: str, reason: str):
    code = (
        "import importlib.util, sys\nfrom fedsdr.cli import main\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: name not in ('trackio', 'wandb') and find(name, *a) or None\n"
        "try: main(['run', 'r.toml', sys.argv[1], 'run.dir=runs/deep/x'])\n"
        "finally: print({'torch', 'transformers'} & {*sys.modules})"
    )
    (tmp_path / "r.toml").write_text('model.name = "tiny"\n')
    done = subprocess.run(
        [sys.executable, "-c", code, word], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stdout.strip() == "set()"
    assert not (tmp_path / "runs").exists()


def test_imports_are_not_searched_for_garbage_and_what_a_run_makes_is():
    """Searching takes a fifth of the time to the first training step."""
    code = (
        "import gc, sys\nfrom fedsdr.federation.environment import import_libraries\n"
        "searches = gc.get_stats()[2]['collections']\nimport_libraries()\n"
        "print(gc.get_stats()[2]['collections'] - searches, gc.isenabled(), gc.get_freeze_count() > 100_000)\n"
        "print({'torch', 'transformers', 'flwr'} <= {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True", "True", "True"]  # one before the imports


@pytest.mark.parametrize(
    "command",
    ["methods", "models", "data RECIPE", "report RUN", "deploy init NEW --clients a,b", "deploy status NEW"],
)
def test_commands_that_compute_nothing_do_not_wait_for_torch(
    command: str, recipe: Path, finished: Path, tmp_path: Path
):
    """`deploy status` took eleven seconds, of which torch and transformers took ten. scipy.special loads quickly."""
    places = {"RECIPE": recipe, "RUN": finished, "NEW": tmp_path / "new"}
    words = [str(places.get(word, word)) for word in command.split()]
    code = (
        "import sys\nfrom fedsdr.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'scipy.stats') if sys.modules.get(name)])"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("command", "says"),
    [("run", "A TOML recipe"), ("resume", "The folder of a run"), ("export", "A new folder")],
)
def test_the_help_of_a_command_explains_its_arguments(fedsdr: Fedsdr, command: str, says: str):
    """Went wrong once: with another release of click they were listed without a word."""
    code, out, _ = fedsdr(command, "--help")
    assert code == 0
    assert says in " ".join(out.split())


def test_a_run_ends_with_its_table_and_the_place_of_its_report(fedsdr: Fedsdr, recipe: Path, tmp_path: Path):
    code, out, err = fedsdr("run", recipe, f"run.dir={tmp_path / 'run'}", "method=fedit")
    assert code == 0
    assert out.startswith("Method: fedit: ")
    assert (
        out.index("The global model's share")
        < out.index("Differences to the base")
        < out.index("Exact score")
    )
    headers = [line.split() for line in out.splitlines() if line.startswith("domain")]
    assert headers[1][:4] == ["domain", "base", "global", "personalised"]
    rows = [
        line.split()[0] for line in out.splitlines() if re.match(r"\w+ .* \[", line) and "model" not in line
    ]
    assert rows == 2 * ["finance", "math", "mean"]
    assert out.rstrip().endswith(str(tmp_path / "run" / "report.html"))
    assert "shared on raw 2 steps" in err


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["resume", "RUN"], {"base", "final", "folder", "adapter", "report"}),
        (["evaluate", "RUN", "--round", "0"], {"base", "final"}),
        (["report", "RUN"], {"report"}),
        (["data", "RECIPE"], {"clients", "domains", "notices", "tokens"}),
        (
            ["methods"],
            {
                "method",
                "client.drift_correction",
                "server.aggregation",
                "server.robust",
                "server.optimizer",
                "distill.prompts",
                "pairs",
                "ranks",
            },
        ),
        (["chat", "RUN", "--question", "Who?", "--max-new-tokens", "3"], {"question", "base", "global"}),
        (
            [
                "chat",
                "RUN",
                "--question",
                "Who?",
                "--max-new-tokens",
                "3",
                "--client",
                "math",
                "--round",
                "1",
            ],
            {"question", "base", "math"},
        ),
        (["export", "RUN", "NEW"], {"folder"}),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_json_is_one_document_and_alone_on_standard_output(
    fedsdr: Fedsdr, recipe: Path, finished: Path, tmp_path: Path, words: list[str], keys: set[str]
):
    places = {"RUN": finished, "RECIPE": recipe, "NEW": tmp_path / "new"}
    code, out, _ = fedsdr(*(places.get(word, word) for word in words), "--json")
    assert code == 0
    assert set(json.loads(out)) == keys


def test_methods_prints_every_name_and_what_does_not_go_together(fedsdr: Fedsdr):
    code, out, _ = fedsdr("methods")
    assert code == 0
    for table in (methods.METHODS, methods.AGGREGATIONS, methods.ROBUST_AGGREGATORS, methods.OPTIMIZERS):
        assert all(f"\n  {name} " in out for name in table)
    exceptions = out.partition("except:")[2]
    for line in ("fedrot: communication.dtype = float32", "zeropad: server.robust = none"):
        assert f"server.aggregation = {line}\n    " in exceptions  # its reason follows
    assert (
        "client.drift_correction = scaffold: client.optimizer = sgd, client.max_grad_norm = 0\n" in exceptions
    )
    assert "[feddpa]: method = feddpa\n" in exceptions


def test_one_method_or_one_table_is_explained_alone(fedsdr: Fedsdr):
    _, alone, _ = fedsdr("methods", "scaffold")
    assert "fedprox" not in alone.partition("\n  not with")[0]
    assert "not with client.optimizer = adamw" in alone
    _, table, _ = fedsdr("methods", "server.optimizer")
    assert table.count(" =\n") == 1
    code, _, error = fedsdr("methods", "fedsdrr")
    assert code == 2
    assert "nearest: fedsdr" in error


def test_quiet_says_nothing_on_standard_error(fedsdr: Fedsdr, finished: Path):
    assert fedsdr("resume", finished, "--quiet")[2] == ""


def test_the_personalised_model_is_exported_by_its_clients_name(
    fedsdr: Fedsdr, finished: Path, tmp_path: Path
):
    code, out, _ = fedsdr("export", finished, tmp_path / "mine", "--client", "math")
    assert (code, out.strip()) == (0, str(tmp_path / "mine"))
    assert json.loads((tmp_path / "mine" / "adapter_config.json").read_text())["r"] == 8  # twice rank 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "no.toml"], "no.toml does not exist"),
        (["run", "run.seed=1"], "the recipe comes first, settings after it"),
        (["run", "RECIPE", "batch"], "not of the form key=value"),
        (["run", "RECIPE", "method=fedsrd"], "fedsdr"),
        (["run", "RECIPE", "client.lr=1"], "client.learning_rate"),
        (["run", "RECIPE", "run.dir=RUN"], "fedsdr resume"),
        (["run", "RECIPE", "--dry-run", "run.dir=RUN"], "fedsdr resume"),
        (["run", "RECIPE", "run.dir=RECIPE"], "is a file"),
        (["run", "RECIPE", "run.dir=NEW", "data.root=/nowhere"], "data.root"),
        (["run", "RECIPE", "run.dir=NEW", "model.name=/nowhere"], "model.name"),
        (["run", "RECIPE", "run.dir=NEW", "model.max_length=16"], "model.max_length"),
        (["run", "RECIPE", "run.dir=NEW", "lora.targets=['nose']"], "q_proj"),
        (["run", "RECIPE", "run.dir=NEW", "partition.kind=iid"], "num_clients"),
        (["resume", "NEW"], "contains no run"),
        (["resume", "RUN", "server.num_rounds=4"], "server.num_rounds=4: a run keeps the settings"),
        (["evaluate", "RUN", "--round", "7"], "rounds 0 to 1"),
        (["report", "NEW"], "contains no run"),
        (["chat", "NEW"], "contains no run"),
        (["chat", "RUN", "--json"], "--question"),
        (["chat", "RUN", "--question", "Who?", "--round", "7"], "rounds 0 to 1"),
        (["export", "RUN", "RUN"], "already exists"),
        (["export", "RUN", "NEW", "--client", "nobody"], "finance, math"),
        (["export", "RUN", "NEW", "--client", "../finance"], "client"),
        (["data", "no.toml"], "does not exist"),
        (["deploy", "init", "NEW", "--clients", "a b,c"], "client 'a b' cannot name a folder"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_a_mistake_ends_with_code_2_and_one_message(
    fedsdr: Fedsdr, recipe: Path, finished: Path, tmp_path: Path, words: list[str], says: str
):
    places: dict[str, Any] = {"RUN": finished, "RECIPE": recipe, "NEW": tmp_path / "new"}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    code, out, err = fedsdr(*words)
    message = err.splitlines()[-1] if err else ""
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    assert "fedsdr: " in err
    assert says in err, message
    assert not (tmp_path / "new" / "config.toml").exists()


@pytest.mark.parametrize(
    ("step", "told"),
    [("check_data", ", repeat the command"), ("_introduce", ": `fedsdr resume NEW`")],
)
def test_a_stopped_run_is_continued_by_what_is_named(
    fedsdr: Fedsdr, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, told: str
):
    """Before the folder held a run, `fedsdr resume` was named, which then found none."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"fedsdr.federation.run.{step}", stop)
    code, _, err = fedsdr("run", recipe, f"run.dir={tmp_path / 'new'}")
    assert code == 130
    assert err.endswith(f"fedsdr: stopped; to continue{told.replace('NEW', str(tmp_path / 'new'))}\n")


def test_a_damaged_run_is_a_clear_error(fedsdr: Fedsdr, finished: Path, tmp_path: Path):
    """Each file of a run folder that a person or a disk may have damaged."""
    import shutil

    for name in (
        "config.toml",
        "environment.json",
        "metrics.jsonl",
        "server/round-0001/adapter_model.safetensors",
    ):
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(finished, folder)
        (folder / name).write_text("{ damaged\n")
        code, _, err = fedsdr("resume", folder)
        assert code == 2, name
        assert Path(name).name in err
        assert "Traceback" not in err


def test_the_help_of_measure_names_every_measurement(fedsdr: Fedsdr):
    from fedsdr.experiments.measurements import MEASUREMENTS

    _, out, _ = fedsdr("measure", "--help")
    assert all(re.search(rf"\b{name}\b", out) for name in MEASUREMENTS)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("measure", "nowhere"), "nowhere contains no run: config.toml is missing"),
        (("measure", "nowhere", "--scales", "0.5,half"), "'0.5,half': expected numbers, separated by commas"),
        (
            ("measure", "nowhere", "--only", "map", "--rounds", "2"),
            "--rounds belongs to frontier, which is not requested",
        ),
        (("analyze", "nowhere.jsonl"), "nowhere.jsonl: there is no such file"),
        (("analyze", "."), "unknown kind of file ''"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_message(fedsdr: Fedsdr, words: tuple[str, ...], told: str):
    code, out, err = fedsdr(*words)
    assert (code, out) == (2, "")
    assert told in err and "Traceback" not in err


def test_pairs_are_analyzed_on_the_command_line(fedsdr: Fedsdr, tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"instruction": f"Say {n}", "output": f"It is {n}.", "distilled": f"Of course, it is {n}."}
        for n in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = fedsdr("analyze", path)
    assert code == 0 and "Rewrite paradox as checked" in out and "undecided: The rewrite paradox" in out
    code, out, _ = fedsdr("analyze", path, "--json")
    assert [*json.loads(out)] == ["paradox"]


def test_the_probe_is_named_by_a_dry_run_of_a_method_that_rewrites(fedsdr: Fedsdr, tmp_path: Path):
    words = ("run", "recipes/demo.toml", "--dry-run", "model.name=tiny", f"run.dir={tmp_path / 'new'}")
    for method, is_named in (("fedsdr", True), ("fedit", False)):
        _, out, _ = fedsdr(*words, f"method={method}")
        assert ("`fedsdr probe`" in out) == is_named


def test_cases_of_the_probe_are_judged_on_the_command_line(fedsdr: Fedsdr, tmp_path: Path):
    path = tmp_path / "cases.jsonl"
    rows = [{"domain": f"d{n}", "outcomes": [n % 2 - 0.5], "passed": n / 8} for n in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = fedsdr("judge-probe", path)
    assert code == 0 and "passed" in out and "too few to validate a rule" in out
    code, out, _ = fedsdr("judge-probe", path, "--json")
    assert json.loads(out)["taken"] == "passed"
