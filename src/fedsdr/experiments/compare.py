"""`fedsdr compare`: every arm of a grid with every seed, a run folder each, and tables that compare them.

If the grid lists learning rates, each arm first selects one on validation examples. Finished runs are kept,
so a stopped grid can be resumed. Rewritings and scores of the base model are shared through one cache: they
depend on model, data and `distill.seed`, but not on the seed of a run.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from multiprocessing import get_context, parent_process
from multiprocessing.context import BaseContext
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

from fedsdr.config import Settings
from fedsdr.errors import Diverged, UserError
from fedsdr.experiments.grid import GridPlan, read_grid, with_rate
from fedsdr.experiments.page import did_they_help
from fedsdr.experiments.results import DIVERGED, chosen_rates, finished, read_trials, tabulate, write_plan
from fedsdr.federation.environment import APART
from fedsdr.federation.run import resume, run
from fedsdr.model.allocator import can_forget_peak, forget_peak
from fedsdr.plugins import load_plugins
from fedsdr.progress import duration, say, show
from fedsdr.recipe import flat
from fedsdr.report.page import REFRESH, PageWriter
from fedsdr.report.sheets import Sheet
from fedsdr.run_folder import Result, RunFolder, read_settings
from fedsdr.storage import write_file

Place = TypeVar("Place")


def compare(
    grid: str | Path, to: str | Path | None = None, jobs: int = 0, on_other_machine: bool = False
) -> dict[str, Sheet]:
    """Finish all runs, and write comparison.json, .md, CSV files and report.html.

    Args:
        grid: A TOML file, see docs/compare.md.
        to: The grid's folder; None: runs/<name of the file>.
        jobs: Number of concurrent runs, each in its own process with its share of the cores. 0: sequentially
            in this process.
        on_other_machine: Also resume runs that were started on another machine, as `resume` does.

    Returns:
        The tables by name: for each step budget, exact score, losses and counts against the baseline, and
        costs; all metrics by domain; the selected learning rates.

    Raises:
        UserError: The grid is invalid, or a run was made with other settings; both are checked before the
            first run. Or some runs failed; the others are then finished and included in the tables.
    """
    folder = Path(to) if to else Path("runs") / Path(grid).stem
    plan = read_grid(Path(grid), folder, jobs)
    for settings in (*plan.trials.values(), *plan.runs.values()):
        _require_same(settings, any_rate=bool(plan.trials))
    write_plan(folder, plan)
    _make_trials(plan, jobs, on_other_machine)
    rates = chosen_rates(read_trials(folder))
    # Seed by seed: a stopped grid then has the same seeds for all arms.
    runs = {
        (arm, seed): with_rate(settings, rates[plan.rate_of[arm]]) if rates else settings
        for (arm, seed), settings in sorted(plan.runs.items(), key=lambda item: item[0][1])
    }
    page_of_now = PageWriter(partial(tabulate, folder, REFRESH))
    errors = _finish_all(
        runs, jobs, on_other_machine, lambda place: f"{place[0]}, seed {place[1]}", page_of_now.write
    )
    if len(errors) == len(runs):
        raise _listed(errors, len(runs))
    comparison, page = tabulate(folder)
    for line in (*comparison.notices, *did_they_help(comparison)):
        say(str(line))
    say(f"tables: {folder}/comparison.md, comparison.json and comparison-*.csv; page: {page}")
    if errors:
        raise _listed(errors, len(runs))
    return comparison.sheets


def _make_trials(plan: GridPlan, jobs: int, on_other_machine: bool) -> None:
    """Run the unfinished trials; a diverged trial counts as finished."""
    waiting = {
        trial: settings
        for trial, settings in plan.trials.items()
        if not (Path(settings.run.dir) / DIVERGED).exists()
    }
    errors = _finish_all(
        waiting, jobs, on_other_machine, lambda trial: f"{trial[0]}, learning rate {trial[1]:g}"
    )
    for trial in [trial for trial, error in errors.items() if isinstance(error, Diverged)]:
        write_file(Path(plan.trials[trial].run.dir) / DIVERGED, f"{errors.pop(trial)}\n")
    if errors:
        raise _listed(errors, len(waiting))


def _listed(errors: Mapping[Place, UserError], num: int) -> UserError:
    """Combine all errors into one, with each reason once."""
    reasons = "\n".join(dict.fromkeys(map(str, errors.values())))
    return UserError(f"{len(errors)} of {num} runs could not be finished:\n{reasons}")


def _finish_all(
    runs: Mapping[Place, Settings],
    jobs: int,
    on_other_machine: bool,
    name: Callable[[Place], str],
    show_page: Callable[[], object] = lambda: None,
) -> dict[Place, UserError]:
    """Finish all runs and return the errors of the failed ones; a failure does not stop the others.

    `show_page` is called after each run but the last.
    """
    errors: dict[Place, UserError] = {}
    for settings in runs.values():
        _require_same(settings)
    waiting = {place: settings for place, settings in runs.items() if not finished(Path(settings.run.dir))}
    numbers, begun = count(1), time.monotonic()

    def finish_and_say(place: Place, finish: Callable[[Settings, bool], Result]) -> Result:
        say(f"run {next(numbers)} of {len(waiting)} begins: {name(place)}")
        return finish(waiting[place], on_other_machine)

    for number, (place, ended) in enumerate(_each(waiting, jobs, finish_and_say), start=1):
        try:
            ended()
        except UserError as error:
            errors[place] = error
            say(f"  {error}")
        else:
            if number < len(waiting):
                show_page()
        if number < len(waiting):
            left = (time.monotonic() - begun) / number * (len(waiting) - number)
            until = (datetime.now() + timedelta(seconds=left)).strftime("%d %B, %H:%M")
            say(f"{name(place)} ended; all {len(waiting)} in about {duration(left)} ({until})")
    return errors


def _each(
    runs: Mapping[Place, Settings],
    jobs: int,
    finish: Callable[[Place, Callable[[Settings, bool], Result]], Result],
) -> Iterator[tuple[Place, Callable[[], Result]]]:
    """Each run with a function that finishes it or raises its error; parallel jobs as they complete."""
    if not jobs:
        yield from ((place, partial(finish, place, _finish)) for place in runs)
        return
    if jobs > 1:  # idle threads that spin would take cores from the other runs
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    threads, idle = ThreadPoolExecutor(jobs), SimpleQueue[ProcessPoolExecutor]()
    for _ in range(jobs):
        idle.put(worker())
    finish_aside = partial(_finish_aside, idle)
    futures = {threads.submit(finish, place, finish_aside): place for place in runs}
    try:
        yield from ((futures[future], future.result) for future in as_completed(futures))
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        while not idle.empty():
            idle.get().shutdown(wait=False)


def _finish_aside(
    idle: SimpleQueue[ProcessPoolExecutor], settings: Settings, on_other_machine: bool
) -> Result:
    """Finish a run in an idle process. If that process is killed, other runs are not affected."""
    process = idle.get()
    try:
        return process.submit(_finish_logged, settings, on_other_machine).result()
    except BrokenProcessPool:
        process = worker()
        raise UserError(
            f"the process of {settings.run.dir} was killed, perhaps because memory ran out (see log.txt"
            " there); give the command again to resume"
        ) from None
    finally:
        idle.put(process)


def worker() -> ProcessPoolExecutor:
    """A process for consecutive runs, which keeps its loaded model for the next one.

    If peak memory cannot be reset for each run, each run has its own process.
    """
    return ProcessPoolExecutor(
        1,
        mp_context=workers(),
        initializer=_end_with_parent,
        max_tasks_per_child=None if can_forget_peak() else 1,
    )


def workers() -> BaseContext:
    """Processes that start with all imports of a run, so that these several seconds are spent only once.

    They are forked from a server that has imported it but computed nothing: torch's threads, which would not
    survive a fork, start with the first product.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["fedsdr.federation.server_app", "fedsdr.federation.client_app"])
    return context


def _finish_logged(settings: Settings, on_other_machine: bool) -> Result:
    """Finish a run with its messages in log.txt in its folder."""
    folder = Path(settings.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log, redirect_stderr(log):
        show()
        load_plugins()  # the settings were checked in another process
        return _finish(settings, on_other_machine)


def _end_with_parent() -> None:
    """End this process when its parent is gone, since a killed parent cannot do so. Nothing is lost."""
    parent = parent_process()
    assert parent is not None

    def wait_and_end() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait_and_end, daemon=True).start()


def _finish(settings: Settings, on_other_machine: bool) -> Result:
    """Run or resume; peak memory is counted for this run only, and left out where that is impossible."""
    forget_peak()
    if RunFolder(settings.run.dir).config.exists():
        return resume(Path(settings.run.dir), on_other_machine=on_other_machine)
    return run(settings)


def _require_same(settings: Settings, any_rate: bool = False) -> None:
    """Reject a run that was started with other settings.

    Values that the machine resolved at the start are kept, whatever the number of jobs now and wherever the
    grid was moved; so are settings that a resumed run may change (`environment.APART`).

    Raises:
        UserError: Lists the differing settings.
    """
    folder = Path(settings.run.dir)
    if not RunFolder(folder).config.exists():
        return
    before = read_settings(folder)
    apart = {name: getattr(before.run, name) for name in ("threads", "cache", *APART["run"])}
    chosen = {key: value for key, value in before.model if getattr(settings.model, key) == "auto"}
    now = settings.model_copy(
        update={
            "run": settings.run.model_copy(update=apart),
            "federation": before.federation,
            "model": settings.model.model_copy(update=chosen),
        }
    )
    if before.eval_every == now.eval_every:
        now = now.model_copy(update={"eval": now.eval.model_copy(update={"every": before.eval.every})})
    if any_rate:
        now = with_rate(now, before.client.learning_rate)
    if before != now:
        old, new = (dict(flat(some.model_dump(mode="json"))) for some in (before, now))
        changed = [key for key in old | new if old.get(key) != new.get(key)]
        listed = ", ".join(f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in changed)
        raise UserError(
            f"{folder} was run with other settings ({listed}); remove it, or set another folder by --to"
        )
