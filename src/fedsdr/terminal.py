"""What the commands share: their common arguments, and how results are printed."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsdr.errors import UserError

Recipe = Annotated[Path, typer.Argument(help="A TOML recipe, such as recipes/demo.toml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings that override the recipe, such as method=fedsd run.seed=1.", metavar="[KEY=VALUE]..."
    ),
]
RunDir = Annotated[Path, typer.Argument(help="The folder of a run.", metavar="RUN_DIR")]
RunOrGrid = Annotated[Path, typer.Argument(help="The folder of a run or of a grid.", metavar="RUN_OR_GRID")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")]


NOT_SHOWN = ("domains", "words", "choice_score", "macro_f1", "matthews", "exact_match", "token_f1")
"""Tables of a grid that are in its files and on its page, and too long for a terminal."""
Round = Annotated[int | None, typer.Option("--round", help="Number of the round; default: the last one.")]


def print_result(result: Any, as_json: bool) -> None:
    """Print a run's scores and where its files are."""
    if as_json:
        places = {"folder": result.folder, "adapter": result.adapter, "report": result.report}
        print_json({"base": result.base, "final": result.final, **{k: str(v) for k, v in places.items()}})
        return
    from fedsdr.report.notices import run_notices

    for notice in run_notices(result.folder, result.base, result.final):
        print(notice)
    print_scores(result.base, result.final)
    no_global = f"none is global; `fedsdr export {result.folder} NEW --client NAME` writes a client's"
    print(f"adapter: {result.adapter if 'global' in result.final else no_global}\nreport:  {result.report}")


def print_estimate(settings: Any, as_json: bool) -> None:
    """Print an estimate of what a run takes, and what could not be estimated."""
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
        print("\n`fedsdr probe` with the same recipe says for each client whether rewriting is likely to pay")


@contextmanager
def resumable(how: str) -> Iterator[None]:
    """On Ctrl-C print how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nfedsdr: stopped; {how}", file=sys.stderr)
        raise typer.Exit(130) from None


def print_scores(base: Any, final: Any) -> None:
    """Print exact scores, scores of labels and of free text where there are any, and held-out losses."""
    from fedsdr.report.sheets import label_sheet, loss_sheet, render_text, score_sheet, text_sheet

    for make in (score_sheet, label_sheet, text_sheet, loss_sheet):
        sheet = make(base, final)
        if sheet.rows:
            print(f"\n{render_text(sheet)}\n")


def print_sheets(sheets: Any, as_json: bool) -> None:
    """Print the tables of a grid."""
    from fedsdr.experiments.results import as_json as sheets_as_json
    from fedsdr.report.sheets import render_text

    if as_json:
        print_json(sheets_as_json(sheets))
        return
    shown = (sheet for name, sheet in sheets.items() if name.rpartition("-")[2] not in NOT_SHOWN)
    print("\n\n".join(render_text(sheet) for sheet in shown))


def split_names(text: str) -> tuple[str, ...]:
    """Split names at commas and spaces."""
    names = tuple(text.replace(",", " ").split())
    if text and not names:
        raise UserError(f"{text!r} names nothing: give names, separated by commas")
    return names


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def read_questions() -> Any:
    """What the user types, until an empty line or the end of input."""
    while True:
        try:
            text = input("? ").strip()
        except EOFError:
            return
        if not text:
            return
        yield text
