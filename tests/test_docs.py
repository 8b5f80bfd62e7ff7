"""The documentation: its commands, its words, and the pages that are made from the program."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from fedsdr import cli, methods
from fedsdr.catalogue import all_rows
from fedsdr.methods import METHODS
from fedsdr.server import aggregate
from tools import docs_pages
from tools.figures import figures

ROOT = Path(__file__).parents[1]
DOCS = [path for path in sorted(ROOT.glob("docs/**/*.md")) if path.name != "comparison.md"]
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PROTOCOLS = ("study.md", "beyond.md")  # written before their results, and left as they were
OLD = re.compile(r"\b(tells?|told|beside|at hand|gone on with|what would do|speaks against)\b", re.IGNORECASE)


@pytest.mark.parametrize("path", DOCS + FRONT, ids=lambda path: str(path.relative_to(ROOT)))
def test_old_phrases_are_gone(path: Path):
    if path.name not in PROTOCOLS:
        assert [found[0] for found in OLD.finditer(path.read_text("utf-8"))] == []


@pytest.mark.parametrize("path", DOCS + FRONT, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_are_at_most_120_characters_but_for_tables_code_and_links(path: Path):
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > 120 and not re.match(r"\||!?\[|<!--", line)]
    assert long == []


@pytest.mark.parametrize("path", DOCS + FRONT, ids=lambda path: path.name)
def test_commands_that_docs_name_exist(path: Path):
    known = {name for name, _ in _named(typer.main.get_command(cli.app), "")}
    for line in re.findall(r"(?:^|`)fedsdr ([a-z](?:eploy )?[a-z-]*)", path.read_text("utf-8"), re.MULTILINE):
        words = line.split()
        name = " ".join(words[:2]) if words[0] == "deploy" and len(words) > 1 else words[0]
        assert name in known, line


def test_made_pages_hold_every_setting_and_command():
    made = docs_pages.pages()
    assert all(f"`{row.key}`" in made["settings.md"] for row in all_rows())
    commands = [
        f"## fedsdr {name}\n"
        for name, is_group in _named(typer.main.get_command(cli.app), "")
        if not is_group
    ]
    assert len(commands) > 10
    assert [title for title in commands if title not in made["commands.md"]] == []


def test_every_method_has_a_page_that_the_site_lists():
    made, listed = docs_pages.pages(), (ROOT / "mkdocs.yml").read_text("utf-8")
    for name in METHODS:
        page = made[f"methods/{name}.md"]
        assert page.startswith(f"# {name}\n")
        assert [
            part for part in ("A round", "Settings", "Cost", "Results") if f"\n## {part}\n" not in page
        ] == []
        assert f"{name}: methods/{name}.md" in listed


def test_every_page_stands_in_the_menu():
    listed = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = [str(path.relative_to(ROOT / "docs")) for path in DOCS]
    assert [page for page in [*pages, *docs_pages.PAGES] if f": {page}\n" not in listed] == []


@pytest.mark.parametrize("path", figures(), ids=lambda path: path.parent.name)
def test_figures_are_drawn_from_the_records_as_they_are(path: Path):
    assert path.read_text("utf-8") == figures()[path], "draw them anew: python -m tools.figures"


def test_the_example_of_contributing_works_as_it_stands(monkeypatch: pytest.MonkeyPatch):
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    row, function, entry, test = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert eval(f"{{{row}}}", vars(methods))["unit"].is_linear is False
    source = dict(vars(aggregate))
    exec(function, source)
    monkeypatch.setattr(aggregate, "unit", source["unit"], raising=False)
    assert callable(eval(f"{{{entry}}}", vars(aggregate))["unit"])
    tests = runpy.run_path(str(ROOT / "tests" / "server" / "test_aggregate.py"))
    exec(test, tests)
    tests["test_unit_gives_every_change_the_same_length"]()


@pytest.mark.run
def test_the_tutorial_runs_as_it_stands(tmp_path: Path):
    blocks = re.findall(
        r"^```\n(.*?)^```$", (ROOT / "docs" / "tutorial.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    commands = "\n".join([*blocks, "fedsdr export runs/fedsdr whole --merged"])
    script = f'set -e\nfedsdr() {{ {sys.executable} -m fedsdr.cli "$@"; }}\n{commands}'
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=540,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "whole" / "model.safetensors").exists()
    assert "did not fit" not in done.stderr


@pytest.mark.run
def test_the_site_builds_strictly(tmp_path: Path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "site" / "settings" / "index.html").exists()
    assert (tmp_path / "site" / docs_pages.SAMPLE / "report.html").exists()


def _named(command, prefix: str):
    for key, one in getattr(command, "commands", {}).items():
        if not one.hidden:
            is_group = hasattr(one, "commands")
            yield f"{prefix}{key}", is_group
            yield from _named(one, f"{prefix}{key} ")
