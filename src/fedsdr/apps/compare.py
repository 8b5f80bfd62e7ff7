"""`fedsdr compare`: every arm of a grid with every seed, each a run folder, and the tables that compare them.

Where the grid lists learning rates, each arm first chooses one on validation examples. Finished runs are
kept, so a stopped grid goes on. Rewritings and scores of the base model are shared through one cache: they
depend on model, data and `distill.seed`, and not on the seed of a run.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from fedsdr.apps.grid import Plan, flat, read_grid, with_rate
from fedsdr.apps.run import Result, is_finished, read_result, read_settings, resolve, resume, run
from fedsdr.config import Settings
from fedsdr.errors import Diverged, UserError
from fedsdr.progress import say
from fedsdr.report.comparison import Cell, Comparison, Trial, compare_cells
from fedsdr.report.grid_page import write_grid_report
from fedsdr.report.tables import Sheet, render_text, to_csv
from fedsdr.storage import read_json, read_lines, write_file, write_json
from fedsdr.tables import METHODS

Place = TypeVar("Place")


def compare(grid: str | Path, to: str | Path | None = None, jobs: int = 0) -> list[Sheet]:
    """Run what is not finished, and write comparison.json, .md, CSV files and report.html.

    Args:
        grid: A TOML file, see docs/methods.md.
        to: The grid's folder; None: runs/<name of the file>.
        jobs: How many runs go on at a time, each in a process of its own with its share of the cores. 0: one
            after the other in this process, which loads the model once but cannot tell their memory apart.

    Returns:
        For each budget: exact score, losses and counts against the baseline, all metrics by domain, costs;
        and the choice of learning rates.

    Raises:
        UserError: The grid is not as it should be, or a run was made with other settings. All settings are
            checked before the first run.
    """
    folder = Path(to) if to else Path("runs") / Path(grid).stem
    plan = read_grid(Path(grid), folder, jobs)
    trials = _trials(plan, jobs)
    chosen = {trial.arm: trial.rate for trial in trials if trial.is_chosen}
    cells = {
        (arm, seed): with_rate(settings, chosen[plan.rate_of[arm]]) if chosen else settings
        for (arm, seed), settings in plan.cells.items()
    }
    results = _finish_all(cells, jobs, lambda cell: f"{cell[0]}, seed {cell[1]}")
    found = [_read_cell(arm, seed, results[arm, seed], cells[arm, seed]) for arm, seed in cells]
    comparison = compare_cells(found, plan.baseline, plan.budgets, trials)
    _write(folder, comparison)
    example = next(iter(results.values())).folder
    page = write_grid_report(
        folder, comparison, plan.baseline, read_settings(example), read_json(example / "environment.json")
    )
    say(f"tables: {folder}/comparison.md, comparison.json and comparison-*.csv; page: {page}")
    return list(comparison.sheets.values())


def as_json(sheets: Sequence[Sheet]) -> list[dict[str, Any]]:
    """Tables as JSON: caption and records."""
    return [{"table": sheet.caption, "records": list(sheet.records)} for sheet in sheets]


def _write(folder: Path, comparison: Comparison) -> None:
    sheets = comparison.sheets
    write_json(folder / "comparison.json", as_json(list(sheets.values())))
    texts = (render_text(sheet, markdown=True) for sheet in sheets.values())
    write_file(folder / "comparison.md", "\n\n".join(texts) + "\n")
    for name, sheet in sheets.items():
        write_file(folder / f"comparison-{name}.csv", to_csv(sheet.records))


def _trials(plan: Plan, jobs: int) -> list[Trial]:
    """Loss of every arm with every rate on the validation examples; the least is chosen.

    It is the loss on what the arm's model learns last, true responses or rewritings: on true responses, any
    rate above zero would hurt an arm that learns rewritings. Mixed: the mean of both.
    """
    results = _finish_all(
        plan.trials, jobs, lambda trial: f"{trial[0]}, learning rate {trial[1]:g}", Diverged
    )
    losses: dict[str, dict[float, float | None]] = {}
    names = {"raw": ["loss"], "distilled": ["loss_distilled"], "mixed": ["loss", "loss_distilled"]}
    for (arm, rate), settings in plan.trials.items():
        loss = None
        if result := results.get((arm, rate)):
            model = result.final.get("global") or result.final["personalised"]
            learnt = names[METHODS[settings.method].learns_last]
            loss = sum(model["mean"][name] for name in learnt) / len(learnt)
        losses.setdefault(arm, {})[rate] = loss
    trials: list[Trial] = []
    for arm, by_rate in losses.items():
        found = {rate: loss for rate, loss in by_rate.items() if loss is not None}
        if not found:
            raise UserError(
                f"{arm}: training diverged with every one of rates = {[*by_rate]}; add lower ones"
            )
        best = min(found, key=found.__getitem__)
        trials += [Trial(arm, rate, loss, rate == best) for rate, loss in by_rate.items()]
    return trials


def _finish_all(
    runs: Mapping[Place, Settings],
    jobs: int,
    name: Callable[[Place], str],
    passed_over: type[Exception] | tuple[()] = (),
) -> dict[Place, Result]:
    """Finish all runs; one that ends with an exception to be passed over has no result."""
    results: dict[Place, Result] = {}
    for number, (place, finish) in enumerate(_started(runs, jobs, name), start=1):
        try:
            results[place] = finish()
            done = f"{results[place].folder}"
        except passed_over as reason:
            done = str(reason)
        if jobs:
            say(f"{number} of {len(runs)} done: {name(place)} ({done})")
    return results


def _started(
    runs: Mapping[Place, Settings], jobs: int, name: Callable[[Place], str]
) -> Iterator[tuple[Place, Callable[[], Result]]]:
    """Each run, and what gives its result or raises its error; of several jobs as they end."""
    if not jobs:
        for number, (place, settings) in enumerate(runs.items(), start=1):
            say(f"run {number} of {len(runs)}: {name(place)}")
            yield place, partial(_finish, settings)
        return
    # A process for each run: its peak of memory is its own. Not forked: torch's threads do not survive that.
    if jobs > 1:  # idle threads that spin would take the cores from the other runs
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1)
    try:
        futures: dict[Future[Result], Place] = {
            pool.submit(_finish_aside, settings): place for place, settings in runs.items()
        }
        for future in as_completed(futures):
            yield futures[future], future.result
    finally:  # what runs is finished and kept, what waits is not begun
        pool.shutdown(cancel_futures=True)


def _finish_aside(settings: Settings) -> Result:
    """Finish a run in a process of its own; what it tells goes to log.txt in its folder."""
    folder = Path(settings.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log, redirect_stderr(log):
        return _finish(settings)


def _finish(settings: Settings) -> Result:
    """Make a run, go on with it, or read it if it is finished."""
    folder = Path(settings.run.dir)
    if not (folder / "config.toml").exists():
        return run(settings)
    before = read_settings(folder)
    threads = {"threads": before.run.threads}  # a run goes on as it began, however many go on beside it
    now = resolve(settings.model_copy(update={"run": settings.run.model_copy(update=threads)}))
    if before != now:
        raise UserError(
            f"{folder} was run with other settings ({_first_difference(before, now)}); remove it, or name"
            " another folder by --to"
        )
    return read_result(folder) if is_finished(before) else resume(folder)


def _first_difference(before: Settings, now: Settings) -> str:
    old, new = (dict(flat(some.model_dump(mode="json"))) for some in (before, now))
    key = next(key for key in new if old.get(key) != new[key])
    return f"{key} was {old.get(key)!r} and is {new[key]!r}"


def _read_cell(arm: str, seed: int, result: Result, settings: Settings) -> Cell:
    """What a finished run has to show, with every answer: in simulation the server holds the tests itself."""
    answers: dict[str, list[dict[str, Any]]] = {}
    for model, number in (("base", 0), ("global", None), ("personalised", None)):
        number = settings.server.num_rounds if number is None else number
        name = f"round-{number:04d}-{'global' if model == 'base' else model}.jsonl"
        paths = sorted(result.folder.glob(f"clients/*/evaluation/{name}"))
        answers[model] = [record for path in paths for record in read_lines(path)]
    events = read_lines(result.folder / "metrics.jsonl")
    return Cell(arm, seed, result.base, result.final, events, answers)
