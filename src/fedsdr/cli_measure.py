"""`fedsdr measure` and `fedsdr analyze`: the paper's claims, measured on runs or on a file of pairs.

`fedsdr probe` and `fedsdr judge-probe`: which clients should not rewrite, and how well that can be predicted.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from fedsdr import progress
from fedsdr.terminal import (
    AsJson,
    Overrides,
    Quiet,
    Recipe,
    RunOrGrid,
    print_json,
    print_sheets,
    split_names,
    split_numbers,
)

Nli = Annotated[
    str, typer.Option(help="NLI cross-encoder that checks entailment (paradox): a hub id or a folder.")
]
Judge = Annotated[
    str, typer.Option(help="Base URL of an OpenAI-compatible server with a judge (winrate, paradox).")
]
RunPrograms = Annotated[
    bool, typer.Option("--run-programs", help="Run the tests in the data; they are programs.")
]
JudgeModel = Annotated[str, typer.Option(help="Name of the judge on that server.")]


def measure(
    folder: RunOrGrid,
    only: Annotated[
        str,
        typer.Option(
            help="Names, separated by commas: alignment, gradients, transfer, map, consistency, survival,"
            " paradox, benchmarks, retention, frontier, winrate. Default: all that are possible."
        ),
    ] = "",
    nli: Nli = "",
    judge: Judge = "",
    judge_model: JudgeModel = "",
    against: Annotated[
        Path | None,
        typer.Option(help="Another run, whose global model is the opponent (winrate)."),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="Questions (benchmarks, retention): a folder as described in docs/data.md, or hub. Default:"
            " the run's own test examples (benchmarks)."
        ),
    ] = "",
    tasks: Annotated[
        str, typer.Option(help="Names of benchmarks or of retention's tasks, separated by commas.")
    ] = "",
    limit: Annotated[int, typer.Option(min=0, help="Questions of each task; 0: all (retention: 500).")] = 0,
    run_programs: RunPrograms = False,
    scales: Annotated[
        str,
        typer.Option(
            help="Scales lambda of a run's change of the base, separated by commas (frontier). Default:"
            " 0.125 to 1.5 for fedit and local-only, 0.5 and 1 for other methods."
        ),
    ] = "",
    rounds: Annotated[
        str, typer.Option(help="Rounds, separated by commas (frontier). Default: half of them and all.")
    ] = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Test the paper's claims on a run, or on every run of a grid, and add the results to its page."""
    progress.show(quiet)
    from fedsdr.experiments.measure import measure as measure_run
    from fedsdr.experiments.measure import measure_grid
    from fedsdr.experiments.measured_run import Options
    from fedsdr.run_folder import PLAN, RunFolder

    options = Options(nli, judge, judge_model, against, data, split_names(tasks), limit, run_programs,
                      split_numbers(scales, float), split_numbers(rounds, int))  # fmt: skip
    if (folder / PLAN).exists():
        print_sheets(measure_grid(folder, split_names(only), options), as_json)
    elif as_json:
        print_json(measure_run(folder, split_names(only), options))
    else:
        print_measurements(measure_run(folder, split_names(only), options))
        print(f"\nreport:  {RunFolder(folder).report}")


def analyze(
    pairs: Annotated[
        Path,
        typer.Argument(
            help="A .jsonl, .json or .csv file with instruction, input, output, distilled and optionally"
            " domain, label, answer or facts.",
            metavar="PAIRS",
        ),
    ],
    clusters: Annotated[
        int,
        typer.Option(min=0, help="Number of clusters of instructions, for a file that names no domains."),
    ] = 0,
    nli: Nli = "",
    judge: Judge = "",
    judge_model: JudgeModel = "",
    run_programs: RunPrograms = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure rewritings in a file of pairs, without a run: alignment of domains and rewrite paradox."""
    progress.show(quiet)
    from fedsdr.experiments.pairs import analyze as analyze_pairs

    made = analyze_pairs(pairs, clusters, nli, judge, judge_model, run_programs)
    if as_json:
        print_json(made)
    else:
        print_measurements(made)


def probe(
    recipe: Recipe,
    overrides: Overrides = None,
    examples: Annotated[int, typer.Option(min=4, help="Training examples of each client.")] = 16,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find clients that should not rewrite; in no case that was trained did rewriting gain (docs/probe.md).

    Takes minutes; trains nothing, and writes only rewritings, into run.cache if that is set.
    """
    progress.show(quiet)
    from fedsdr.experiments.probe import probe as probe_clients
    from fedsdr.experiments.probe import probe_sheet
    from fedsdr.recipe import load_settings

    _print_found(probe_clients(load_settings(recipe, overrides or []), examples), probe_sheet, as_json)


def judge_probe(
    cases: Annotated[
        Path,
        typer.Argument(help="A .jsonl file, in the format of docs/probe.md.", metavar="CASES"),
    ],
    as_json: AsJson = False,
) -> None:
    """Evaluate `fedsdr probe` on trainings with known outcomes."""
    from fedsdr.experiments.probe import cases_sheet, judge_cases

    _print_found(judge_cases(cases), cases_sheet, as_json)


def _print_found(found: Any, sheet: Any, as_json: bool) -> None:
    from fedsdr.report.sheets import render_text

    if as_json:
        print_json(found)
        return
    print(render_text(sheet(found)))
    for note in found["notes"]:
        print(f"\n{note}")


def print_measurements(made: Any) -> None:
    """Print the tables and verdicts of measurements."""
    from fedsdr.report.measurements import measurement_sheets
    from fedsdr.report.sheets import render_text

    for sheet in measurement_sheets(made):
        print(f"\n{render_text(sheet)}")
    for measurement in made.values():
        for verdict in measurement.get("verdicts", ()):
            print(f"\n{verdict['verdict']}: {verdict['claim']}\n  {verdict['text']}")
