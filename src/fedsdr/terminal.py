"""Shared parts of the commands: common arguments, and printing of results."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from fedsdr.errors import UserError

Number = TypeVar("Number", int, float)


def complete_override(incomplete: str) -> list[str]:
    """Completions of KEY=VALUE: keys, and the values of keys with a few."""
    from fedsdr.catalogue import all_rows, choices

    key, is_value, begun = incomplete.partition("=")
    if is_value:
        return [f"{key}={value}" for value in choices(key) if value.startswith(begun)]
    return [f"{row.key}=" for row in all_rows() if row.key.startswith(key)]


def complete_key(incomplete: str) -> list[str]:
    """Keys and sections with this prefix."""
    from fedsdr.catalogue import all_rows

    keys = [row.key for row in all_rows()]
    return [
        one
        for one in dict.fromkeys([*(key.partition(".")[0] for key in keys), *keys])
        if one.startswith(incomplete)
    ]


Recipe = Annotated[Path, typer.Argument(help="A TOML recipe, such as recipes/demo.toml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings that override the recipe, such as method=fedsd run.seed=1.",
        metavar="[KEY=VALUE]...",
        autocompletion=complete_override,
    ),
]
RunDir = Annotated[Path, typer.Argument(help="The folder of a run.", metavar="RUN_DIR")]
RunOrGrid = Annotated[Path, typer.Argument(help="The folder of a run or of a grid.", metavar="RUN_OR_GRID")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")]


COLOURS = {"✓": 32, "✗": 31, "?": 33}
"""Sign of a difference -> colour number: green, red, yellow."""
SIGNED = r"[✓✗?] [+-][\d.]+( \[[^]]*\])?"
"""A sign, a difference, and its interval."""
NOT_SHOWN = ("domains", "words", "choice_score", "macro_f1", "matthews", "exact_match", "token_f1")
"""Tables of a grid that are too long for a terminal; they are in its files and on its page."""
Round = Annotated[int | None, typer.Option("--round", help="Number of the round; default: the last one.")]


def print_result(result: Any, as_json: bool) -> None:
    """Print a run's scores and the paths of its files."""
    if as_json:
        places = {"folder": result.folder, "adapter": result.adapter, "report": result.report}
        print_json({"base": result.base, "final": result.final, **{k: str(v) for k, v in places.items()}})
        return
    from fedsdr.report.facts import run_facts
    from fedsdr.report.gains import did_it_help, gain_records, gain_sheet, read_answers
    from fedsdr.report.notices import run_notices
    from fedsdr.run_folder import RunFolder, read_settings
    from fedsdr.storage import read_json, read_lines

    run = RunFolder(result.folder)
    settings = read_settings(result.folder)
    for what, text in run_facts(settings, read_json(run.environment)):
        print(f"{what}: {text}")
    for notice in run_notices(result.folder, result.base, result.final):
        print(coloured("✗", str(notice)) if notice.is_warning else notice)
    answers = read_answers(run, settings.server.num_rounds)
    gains = gain_records(result.base, result.final, answers)
    print("\n" + "\n".join(did_it_help(gains, read_lines(run.log))) + "\n")
    print_sheet(gain_sheet(gains))
    print_scores(result.base, result.final)
    no_global = f"none is global; `fedsdr export {result.folder} NEW --client NAME` writes a client's"
    print(f"adapter: {result.adapter if 'global' in result.final else no_global}\nreport:  {result.report}")


def print_estimate(settings: Any, as_json: bool) -> None:
    """Print the estimated cost of a run, and what could not be estimated."""
    from dataclasses import asdict

    from fedsdr.federation.dry_run import dry_run, sheets
    from fedsdr.methods import METHODS
    from fedsdr.report.sheets import render_text

    estimate = dry_run(settings)
    if as_json:
        print_json(asdict(estimate))
        return
    for line in estimate.known:
        print(line)
    for line in estimate.unknown:
        print(f"not known: {line}")
    for sheet in sheets(estimate):
        print(f"\n{render_text(sheet)}")
    if METHODS[settings.method].needs_rewritings:
        print("\n`fedsdr probe` with the same recipe finds clients that should not rewrite")


@contextmanager
def resumable(run_dir: str | Path = "") -> Iterator[None]:
    """On Ctrl-C print how to continue: by `fedsdr resume`, if the folder holds a run by then."""
    try:
        yield
    except KeyboardInterrupt:
        from fedsdr.run_folder import RunFolder

        is_run = run_dir and RunFolder(run_dir).config.exists()
        how = f": `fedsdr resume {run_dir}`" if is_run else ", repeat the command"
        print(f"\nfedsdr: stopped; to continue{how}", file=sys.stderr)
        raise typer.Exit(130) from None


def print_scores(base: Any, final: Any) -> None:
    """Print exact scores, scores of labels and of free text if there are any, and held-out losses."""
    from fedsdr.report.sheets import label_sheet, loss_sheet, score_sheet, text_sheet

    for make in (score_sheet, label_sheet, text_sheet, loss_sheet):
        sheet = make(base, final)
        if sheet.rows:
            print_sheet(sheet)


def print_sheets(sheets: Any, as_json: bool) -> None:
    """Print the tables of a grid."""
    from fedsdr.experiments.comparison import KEY
    from fedsdr.experiments.results import as_json as sheets_as_json

    if as_json:
        print_json(sheets_as_json(sheets))
        return
    shown = (sheet for name, sheet in sheets.items() if name.rpartition("-")[2] not in NOT_SHOWN)
    for sheet in shown:
        print_sheet(sheet)
    print(KEY)


def print_sheet(sheet: Any) -> None:
    """Print a table; on a terminal, differences preceded by a sign are coloured."""
    from fedsdr.report.sheets import render_text

    text = render_text(sheet)
    print("\n" + re.sub(SIGNED, lambda found: coloured(found[0][0], found[0]), text) + "\n")


def coloured(sign: str, text: str) -> str:
    """The text in the colour of its sign, if standard output is a terminal."""
    is_shown = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return f"\033[{COLOURS[sign]}m{text}\033[0m" if is_shown else text


def split_names(text: str) -> tuple[str, ...]:
    """Split names at commas and spaces."""
    names = tuple(text.replace(",", " ").split())
    if text and not names:
        raise UserError(f"{text!r} names nothing: give names, separated by commas")
    return names


def split_numbers(text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """Split numbers at commas and spaces."""
    try:
        return tuple(kind(word) for word in split_names(text))
    except ValueError:
        raise UserError(f"{text!r}: expected numbers, separated by commas") from None


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def read_questions() -> Any:
    """The user's input, line by line, until an empty line or the end of input."""
    while True:
        try:
            text = input("? ").strip()
        except EOFError:
            return
        if not text:
            return
        yield text
