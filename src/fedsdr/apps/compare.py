"""`fedsdr compare`: every arm of a grid with every seed, each a run folder, and the tables that compare them.

Where the grid lists learning rates, each arm first chooses one on validation examples. Finished runs are
kept, so a stopped grid goes on. Rewritings and scores of the base model are shared through one cache: they
depend on model, data and `distill.seed`, and not on the seed of a run.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from fedsdr.apps.grid import Plan, flat, read_grid, with_rate
from fedsdr.apps.grid_results import DIVERGED, chosen_rates, read_trials, tabulate, write_plan
from fedsdr.apps.run import Result, is_finished, read_result, read_settings, resolve, resume, run
from fedsdr.config import Settings
from fedsdr.errors import Diverged, UserError
from fedsdr.progress import say
from fedsdr.report.tables import Sheet
from fedsdr.storage import write_file

Place = TypeVar("Place")


def compare(grid: str | Path, to: str | Path | None = None, jobs: int = 0) -> dict[str, Sheet]:
    """Run what is not finished, and write comparison.json, .md, CSV files and report.html.

    Args:
        grid: A TOML file, see docs/methods.md.
        to: The grid's folder; None: runs/<name of the file>.
        jobs: How many runs go on at a time, each in a process of its own with its share of the cores. 0: one
            after the other in this process, which loads the model once but cannot tell their memory apart.

    Returns:
        The tables by name: for each budget exact score, losses and counts against the baseline, and costs;
        all metrics by domain; the choice of learning rates.

    Raises:
        UserError: The grid is not as it should be, or a run was made with other settings. All settings are
            checked before the first run.
    """
    folder = Path(to) if to else Path("runs") / Path(grid).stem
    plan = read_grid(Path(grid), folder, jobs)
    write_plan(folder, plan)
    rates = _choose_rates(folder, plan, jobs)
    cells = {
        (arm, seed): with_rate(settings, rates[plan.rate_of[arm]]) if rates else settings
        for (arm, seed), settings in plan.cells.items()
    }
    for _, finish in _each(cells, jobs, lambda cell: f"{cell[0]}, seed {cell[1]}"):
        finish()
    sheets, page = tabulate(folder)
    say(f"tables: {folder}/comparison.md, comparison.json and comparison-*.csv; page: {page}")
    return sheets


def _choose_rates(folder: Path, plan: Plan, jobs: int) -> dict[str, float]:
    """Run the trials that are not done; arm -> learning rate."""
    waiting = {
        trial: settings
        for trial, settings in plan.trials.items()
        if not (Path(settings.run.dir) / DIVERGED).exists()
    }
    for trial, finish in _each(waiting, jobs, lambda trial: f"{trial[0]}, learning rate {trial[1]:g}"):
        try:
            finish()
        except Diverged as reason:
            write_file(Path(plan.trials[trial].run.dir) / DIVERGED, f"{reason}\n")
    return chosen_rates(read_trials(folder))


def _each(
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
        for number, future in enumerate(as_completed(futures), start=1):
            say(f"run {number} of {len(runs)} ended: {name(futures[future])}")
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
