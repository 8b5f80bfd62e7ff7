"""Generated pages of the documentation site: nothing is written twice.

mkdocs runs it (mkdocs.yml, gen-files). README.md becomes the first page; CHANGELOG.md, CONTRIBUTING.md and
SECURITY.md become pages; every setting and every command get theirs from the program itself. Each method's
page gets what follows from the tables (`docs_methods`); the record of the demo becomes its page of results.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import click
import typer

from fedsdr import cli
from fedsdr.catalogue import Row, all_rows
from fedsdr.methods import METHODS
from fedsdr.report.page import write_report
from fedsdr.run_folder import read_settings
from tools.docs_methods import generated

ROOT = Path(__file__).parents[1]
PAGES = {
    "index.md": "README.md",
    "changes.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
"""Page -> the file of the repository that it shows."""
SAMPLE = "results/demo-2026-11"
"""Record of the run whose page is shown."""
MADE = (*PAGES, "settings.md", "commands.md", "api.md", f"{SAMPLE}/report.html")
"""All pages that are not files of docs/."""
API = (
    "fedsdr",
    "fedsdr.config",
    "fedsdr.config_training",
    "fedsdr.methods",
    "fedsdr.run_folder",
    "fedsdr.callbacks",
    "fedsdr.plugins",
    "fedsdr.data.examples",
)
"""Modules whose public names the page of Python shows."""


def shown(text: str) -> str:
    """A file's text with links that work on the site; anything outside the site is named without a link."""
    moved = {source: page for page, source in PAGES.items()}

    def link(found: re.Match[str]) -> str:
        words, target = found[1], found[2]
        target = moved.get(target, target.removeprefix("docs/"))
        is_page = target.startswith(("http", "#")) or target.endswith((".md", ".svg", ".png"))
        return f"[{words}]({target})" if is_page else f"{words} (`{found[2]}`)"

    return re.sub(r"\[([^\]]*)\]\(([^)]+)\)", link, text)


def settings_page() -> str:
    """Every setting in tables, a section each."""
    parts = ["# Every setting\n\nAs in a recipe, or as `key=value` on the command line.\n"]
    for section, rows in groupby(all_rows(), key=lambda row: row.key.rpartition(".")[0]):
        parts += [
            f"\n## {f'[{section}]' if section else 'Top level'}\n",
            "| key | type | default | meaning |",
            "|---|---|---|---|",
        ]
        parts += [_setting(row) for row in rows]
    return "\n".join(parts) + "\n"


def _setting(row: Row) -> str:
    used = f" Read under {row.used}." if row.used else ""
    cells = (f"`{row.key}`", row.kind, f"`{row.default}`", f"{row.text}{used}")
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def commands_page() -> str:
    """Every command with its help."""
    return "# Command line\n" + "\n".join(_commands(typer.main.get_command(cli.app), "fedsdr"))


def _commands(command: click.Command, name: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        for key, one in sorted(command.commands.items()):
            if not one.hidden:
                yield from _commands(one, f"{name} {key}")
        return
    context = click.Context(command, info_name=name)
    usage = f"{name} {' '.join(command.collect_usage_pieces(context))}"
    yield f"\n## {name}\n\n```\n{usage}\n```\n\n{' '.join((command.help or '').split())}\n"
    options = [record for param in command.params if (record := param.get_help_record(context))]
    options = [(flag, text) for flag, text in options if flag != "--help"]
    if options:
        yield "| option | meaning |\n|---|---|"
        for flag, text in options:
            yield f"| `{flag}` | {' '.join(text.split())} |".replace("\\|", "|")


def api_page() -> str:
    """The documented names of the modules that a program imports."""
    return "# Python\n\n" + "\n".join(f"::: {module}\n" for module in API)


def method_page(name: str) -> str:
    """A method's idea and equation, and what follows from the tables."""
    return (ROOT / "docs" / "methods" / f"{name}.md").read_text("utf-8") + "\n" + generated(name)


def sample_page() -> str:
    """The page of a recorded run."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(ROOT / "docs" / SAMPLE, Path(folder) / Path(SAMPLE).name))
        return write_report(copy, read_settings(copy)).read_text("utf-8")


def pages() -> dict[str, str]:
    """All generated pages, by name."""
    made = {page: shown((ROOT / source).read_text("utf-8")) for page, source in PAGES.items()}
    made |= {f"methods/{name}.md": method_page(name) for name in METHODS}
    made |= {"settings.md": settings_page(), "commands.md": commands_page(), "api.md": api_page()}
    return made | {f"{SAMPLE}/report.html": sample_page()}


if __name__ == "<run_path>":  # mkdocs' gen-files
    import mkdocs_gen_files  # type: ignore[import-not-found,unused-ignore]

    for name, content in pages().items():
        with mkdocs_gen_files.open(name, "w") as file:
            file.write(content)
