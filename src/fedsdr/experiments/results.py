"""The results in a grid's folder: its finished runs, their tables and its page.

`grid.json` lists the runs; nothing outside the folder is needed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedsdr.errors import UserError
from fedsdr.experiments.comparison import Comparison, Group, Trial, compare_runs
from fedsdr.experiments.frontier import CONTROLS, ScoredRun, frontier, frontier_sheet, mean_points
from fedsdr.experiments.grid import GridPlan
from fedsdr.experiments.grid_runs import GridRun
from fedsdr.experiments.page import write_grid_report
from fedsdr.methods import METHODS
from fedsdr.recipe import flat
from fedsdr.report.consistency import arms_sheet
from fedsdr.report.frontier import frontier_svg
from fedsdr.report.notices import Notice, few_test_examples, run_notices
from fedsdr.report.sheets import Sheet, grouped, render_text, to_csv
from fedsdr.run_folder import PLAN, Result, RunFolder, read_result, read_settings
from fedsdr.storage import Event, content_hash, read_json, read_lines, write_file, write_json

DIVERGED = "diverged.txt"
"""File in the folder of a trial whose learning rate was too high."""
MOST_NOTICES = 10
"""Maximum warnings at the head of a grid's page."""


def write_plan(folder: Path, plan: GridPlan) -> None:
    """Save the information about a grid that its tables need."""

    def listed(runs: Mapping[Any, Any]) -> list[list[Any]]:
        return [[*place, str(Path(some.run.dir).relative_to(folder))] for place, some in runs.items()]

    groups = {equal: asdict(group) for equal, group in plan.groups.items()}
    write_json(folder / PLAN, {"groups": groups, "cells": listed(plan.runs), "trials": listed(plan.trials)})


def planned_runs(folder: Path) -> list[tuple[str, int, Path]]:
    """Arm, seed and folder of every run of a grid, finished or not."""
    return [(arm, seed, folder / place) for arm, seed, place in read_json(folder / PLAN)["cells"]]


def tabulate(folder: Path, refresh: int = 0) -> tuple[Comparison, Path]:
    """Write the tables and the page of a grid, finished or not.

    Args:
        folder: The grid's.
        refresh: Seconds after which the page reloads itself, while the grid is running; 0: never.

    Returns:
        The tables with the runs' warnings, and the path of the page.

    Raises:
        UserError: No run is finished yet.
    """
    planned = planned_runs(folder)
    results = [(arm, seed, result) for arm, seed, place in planned if (result := finished(place))]
    if not results:
        raise UserError(f"no run of the grid in {folder} is finished yet")
    groups = {equal: Group(**group) for equal, group in read_json(folder / PLAN)["groups"].items()}
    runs = [_read_run(*one) for one in results]
    comparison = compare_runs(runs, groups, read_trials(folder))
    comparison = replace(comparison, notices=[*comparison.notices, *grid_notices(results)])
    if agreement := _agreement(results):
        comparison.sheets["consistency"] = arms_sheet(agreement)
    drawing = ""
    if at_equal_cost := _frontier(results, groups):
        comparison.sheets["frontier"], drawing = at_equal_cost
        write_file(folder / "frontier.svg", drawing)
    comparison.sheets["arms"] = _arms_sheet({arm: result.folder for arm, _, result in results})
    _write(folder, comparison)
    now = f"running on {time.strftime('%d %B, %H:%M:%S')}" if refresh else "unfinished"
    again = f"; this page reloads itself every {refresh} s" if refresh else ""
    status = f"{now}: {len(runs)} of {len(planned)} runs{again}" if len(runs) < len(planned) else ""
    example = results[0][2].folder
    environment = read_json(RunFolder(example).environment)
    pages = [(f"{arm}, seed {seed}", place / "report.html") for arm, seed, place in planned]
    links = [(name, str(page.relative_to(folder))) for name, page in pages if page.exists()]
    return comparison, write_grid_report(
        folder, comparison, status, read_settings(example), environment, links, runs, drawing, refresh
    )


def grid_notices(results: Sequence[tuple[str, int, Result]]) -> list[Notice]:
    """Few test examples, then the warnings of the runs (arm, seed, result).

    Each text is there once, with the arms and the number of runs.
    """
    found = grouped(
        (notice.text, arm)
        for arm, _, result in results
        for notice in run_notices(result.folder, result.base, result.final)
        if notice.is_warning
    )
    notices = few_test_examples(result.base for _, _, result in results)
    for text, arms in found.items():
        where = f"{', '.join(dict.fromkeys(arms))}: {len(arms)} of {len(results)} runs"
        notices.append(Notice(text if len(arms) == len(results) else f"{text} ({where})", is_warning=True))
    if len(notices) > MOST_NOTICES:
        more = f"{len(notices) - MOST_NOTICES} more warnings are on the pages of the runs"
        notices[MOST_NOTICES:] = [Notice(more, is_warning=True)]
    return notices


def as_json(sheets: dict[str, Sheet]) -> list[dict[str, Any]]:
    """Tables as JSON: caption and records."""
    return [{"table": sheet.caption, "records": list(sheet.records)} for sheet in sheets.values()]


def read_trials(folder: Path) -> list[Trial]:
    """Validation loss of every arm with every tried rate; the lowest is chosen.

    The loss is on the texts that the arm's model learns last, true responses or rewritings: on true
    responses, any rate above zero would hurt an arm that learns rewritings. Mixed: the mean of both. The
    model is the global one, or the personalised one for methods that aim at personalised models.
    """
    losses: dict[str, dict[float, float | None]] = {}
    for arm, rate, place in read_json(folder / PLAN)["trials"]:
        if (folder / place / DIVERGED).exists():
            losses.setdefault(arm, {})[rate] = None
        elif result := finished(folder / place):
            losses.setdefault(arm, {})[rate] = _validation_loss(result)
    trials: list[Trial] = []
    for arm, by_rate in losses.items():
        found = {rate: loss for rate, loss in by_rate.items() if loss is not None}
        best = min(found, key=found.__getitem__, default=None)
        trials += [Trial(arm, rate, loss, rate == best) for rate, loss in by_rate.items()]
    return trials


def chosen_rates(trials: Sequence[Trial]) -> dict[str, float]:
    """Arm -> learning rate.

    Raises:
        UserError: An arm diverged with every rate.
    """
    chosen = {trial.arm: trial.rate for trial in trials if trial.is_chosen}
    for arm in dict.fromkeys(trial.arm for trial in trials):
        if arm not in chosen:
            rates = [trial.rate for trial in trials if trial.arm == arm]
            raise UserError(f"{arm}: training diverged with every one of rates = {rates}; add lower ones")
    return chosen


def _validation_loss(result: Result) -> float:
    method = METHODS[read_settings(result.folder).method]
    names = {
        "raw": ["loss"],
        "likely": ["loss"],
        "distilled": ["loss_distilled"],
        "mixed": ["loss", "loss_distilled"],
    }
    model = "global" if "global" in result.final and method.personal == "sum" else "personalised"
    mean = result.final.get(model, {}).get("mean")
    if mean is None:
        raise UserError(
            f"{result.folder}: the {model} model was not scored on all validation examples (replies were"
            " dropped, or a client was never sampled), so its learning rate cannot be judged; leave rates out"
        )
    learnt = names[method.learns_last]
    return sum(mean[name] for name in learnt) / len(learnt)


def finished(folder: Path) -> Result | None:
    """Result of a run; None if it has not begun or is not finished."""
    return read_result(folder) if RunFolder(folder).is_finished() else None


def _read_run(arm: str, seed: int, result: Result) -> GridRun:
    """Read a finished run with every answer: in a simulation the server's machine has the test examples."""
    settings, run = read_settings(result.folder), RunFolder(result.folder)
    answers: dict[str, list[Event]] = {}
    for client in run.client_folders():
        for model, path in client.final_answers(settings.server.num_rounds).items():
            answers.setdefault(model, []).extend(read_lines(path))
    rest = settings.model_dump(
        mode="json", exclude={"run": True, "method": True, "client": {"learning_rate"}}
    )
    events = read_lines(run.log)
    rounds = run.evaluations()
    return GridRun(
        arm, seed, result.base, result.final, events, answers, settings.method, content_hash(rest), rounds
    )


def _agreement(
    results: Sequence[tuple[str, int, Result]],
) -> list[tuple[str, Sequence[Event], Sequence[Event]]]:
    """Arm, and records of consistency and survival, of the measured runs."""
    found = []
    for arm, _, result in results:
        paths = [RunFolder(result.folder).measurement(name) for name in ("consistency", "survival")]
        if all(path.exists() for path in paths):
            updates, survival = (read_json(path)["records"] for path in paths)
            found.append((arm, updates, survival))
    return found


def _frontier(
    results: Sequence[tuple[str, int, Result]], groups: Mapping[str, Group]
) -> tuple[Sheet, str] | None:
    """Table and drawing of the runs measured at equal cost; None without a control among them."""
    methods: dict[str, str] = {}
    scored: list[ScoredRun] = []
    labels: list[str] = []
    for arm, seed, result in results:
        if (path := RunFolder(result.folder).measurement("frontier")).exists():
            found = read_json(path)
            methods[arm] = read_settings(result.folder).method
            scored.append(ScoredRun(arm, seed, found["models"]))
            labels = found["one_word"]
    controls: dict[str, str] = {}
    for model, method in CONTROLS.items():
        baselines = (group.baseline_of(model) for group in groups.values())
        if arms := [arm for arm in (*baselines, *methods) if methods.get(arm) == method]:
            controls[model] = arms[0]
    if not (records := frontier(scored, controls, labels)):
        return None
    return frontier_sheet(records), frontier_svg(mean_points(scored), controls)


def _arms_sheet(folders: Mapping[str, Path]) -> Sheet:
    """The settings in which the arms differ."""
    found = {arm: dict(flat(read_settings(place).model_dump(mode="json"))) for arm, place in folders.items()}
    keys = dict.fromkeys(key for own in found.values() for key in own if not key.startswith("run."))
    varied = [key for key in keys if len({str(own.get(key)) for own in found.values()}) > 1]
    records = [{"arm": arm} | {key: own.get(key) for key in varied} for arm, own in found.items()]
    rows = tuple(tuple(str(value) for value in record.values()) for record in records)
    return Sheet(
        "Arms: settings in which they differ", "l" * (1 + len(varied)), ("arm", *varied), rows, tuple(records)
    )


def _write(folder: Path, comparison: Comparison) -> None:
    write_json(folder / "comparison.json", as_json(comparison.sheets))
    parts = ["\n".join(f"- {notice}" for notice in comparison.notices)]
    for sheet in comparison.sheets.values():
        parts += [render_text(sheet, markdown=True), sheet.note]
    write_file(folder / "comparison.md", "\n\n".join(filter(None, parts)) + "\n")
    for name, sheet in comparison.sheets.items():
        write_file(folder / f"comparison-{name}.csv", to_csv(sheet.records))
