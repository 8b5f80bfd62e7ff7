"""`fedsdr compare`: every arm of a grid with every seed, each a run folder, and the tables that compare them.

Where the grid lists learning rates, each arm first chooses one on validation examples. Finished runs are
kept, so a stopped grid can be resumed. Rewritings and scores of the base model are shared through one cache:
they depend on model, data and `distill.seed`, and not on the seed of a run.
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
from fedsdr.experiments.grid import Plan, read_grid, with_rate
from fedsdr.experiments.results import DIVERGED, chosen_rates, finished, read_trials, tabulate, write_plan
from fedsdr.federation.environment import APART
from fedsdr.federation.run import resume, run
from fedsdr.model.allocator import forget_peak
from fedsdr.plugins import load_plugins
from fedsdr.progress import duration, say, show
from fedsdr.recipe import flat
from fedsdr.report.page import REFRESH
from fedsdr.report.sheets import Sheet
from fedsdr.run_folder import Result, RunFolder, read_settings
from fedsdr.storage import write_file

Place = TypeVar("Place")


def compare(grid: str | Path, to: str | Path | None = None, jobs: int = 0) -> dict[str, Sheet]:
    """Make all runs that are not finished, and write comparison.json, .md, CSV files and report.html.

    Args:
        grid: A TOML file, see docs/compare.md.
        to: The grid's folder; None: runs/<name of the file>.
        jobs: How many runs run at a time, in as many processes, each with its share of the cores. 0: one
            after the other in this process.

    Returns:
        The tables by name: for each budget of steps exact score, losses and counts against the baseline, and
        costs; all metrics by domain; the choice of learning rates.

    Raises:
        UserError: The grid is not valid, or a run was made with other settings: all are checked before the
            first run. Or some runs failed: the others are finished and in the tables by then.
    """
    folder = Path(to) if to else Path("runs") / Path(grid).stem
    plan = read_grid(Path(grid), folder, jobs)
    for settings in (*plan.trials.values(), *plan.runs.values()):
        _require_same(settings, any_rate=bool(plan.trials))
    write_plan(folder, plan)
    _make_trials(plan, jobs)
    rates = chosen_rates(read_trials(folder))
    # Seed by seed: a grid that is stopped has the same seeds of all arms.
    runs = {
        (arm, seed): with_rate(settings, rates[plan.rate_of[arm]]) if rates else settings
        for (arm, seed), settings in sorted(plan.runs.items(), key=lambda item: item[0][1])
    }
    page_of_now = partial(tabulate, folder, REFRESH)
    errors = _finish_all(runs, jobs, lambda place: f"{place[0]}, seed {place[1]}", page_of_now)
    if len(errors) == len(runs):
        raise _listed(errors, len(runs))
    sheets, page = tabulate(folder)
    say(f"tables: {folder}/comparison.md, comparison.json and comparison-*.csv; page: {page}")
    if errors:
        raise _listed(errors, len(runs))
    return sheets


def _make_trials(plan: Plan, jobs: int) -> None:
    """Run the trials that are not done; one that diverges is done too."""
    waiting = {
        trial: settings
        for trial, settings in plan.trials.items()
        if not (Path(settings.run.dir) / DIVERGED).exists()
    }
    errors = _finish_all(waiting, jobs, lambda trial: f"{trial[0]}, learning rate {trial[1]:g}")
    for trial in [trial for trial, error in errors.items() if isinstance(error, Diverged)]:
        write_file(Path(plan.trials[trial].run.dir) / DIVERGED, f"{errors.pop(trial)}\n")
    if errors:
        raise _listed(errors, len(waiting))


def _listed(errors: Mapping[Place, UserError], num: int) -> UserError:
    """All errors as one, each reason once."""
    reasons = "\n".join(dict.fromkeys(map(str, errors.values())))
    return UserError(f"{len(errors)} of {num} runs could not be finished:\n{reasons}")


def _finish_all(
    runs: Mapping[Place, Settings],
    jobs: int,
    name: Callable[[Place], str],
    show_page: Callable[[], object] = lambda: None,
) -> dict[Place, UserError]:
    """Finish all runs and return the errors of those that fail, which do not stop the others.

    After each but the last, `show_page` is called.
    """
    errors: dict[Place, UserError] = {}
    for settings in runs.values():
        _require_same(settings)
    waiting = {place: settings for place, settings in runs.items() if not finished(Path(settings.run.dir))}
    numbers, begun = count(1), time.monotonic()

    def finish_and_say(place: Place, finish: Callable[[Settings], Result]) -> Result:
        say(f"run {next(numbers)} of {len(waiting)} begins: {name(place)}")
        return finish(waiting[place])

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
    runs: Mapping[Place, Settings], jobs: int, finish: Callable[[Place, Callable[[Settings], Result]], Result]
) -> Iterator[tuple[Place, Callable[[], Result]]]:
    """Each run, and what finishes it or raises its error; of several jobs as they end."""
    if not jobs:
        yield from ((place, partial(finish, place, _finish)) for place in runs)
        return
    if jobs > 1:  # idle threads that spin would take the cores from the other runs
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


def _finish_aside(idle: SimpleQueue[ProcessPoolExecutor], settings: Settings) -> Result:
    """Finish a run in a process that is idle. Its end, should it be killed, concerns no other run."""
    process = idle.get()
    try:
        return process.submit(_finish_logged, settings).result()
    except BrokenProcessPool:
        process = worker()
        raise UserError(
            f"the process of {settings.run.dir} was killed, perhaps because memory ran out (see log.txt"
            " there); give the command again to resume"
        ) from None
    finally:
        idle.put(process)


def worker() -> ProcessPoolExecutor:
    """A process for runs one after the other, which keeps the model that it loaded for the next.

    Where the peak of memory cannot be counted anew for each run, each has a process of its own.
    """
    return ProcessPoolExecutor(
        1,
        mp_context=workers(),
        initializer=_end_with_parent,
        max_tasks_per_child=None if forget_peak() else 1,
    )


def workers() -> BaseContext:
    """Processes that begin with all that a run imports, which takes several seconds, paid once.

    They are forked from a server that has imported it and computed nothing: torch's threads, which would not
    survive that, begin with the first product.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["fedsdr.federation.server_app", "fedsdr.federation.client_app"])
    return context


def _finish_logged(settings: Settings) -> Result:
    """Finish a run with its messages in log.txt in its folder."""
    folder = Path(settings.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log, redirect_stderr(log):
        show()
        load_plugins()  # the settings were checked in another process
        return _finish(settings)


def _end_with_parent() -> None:
    """End this process when its parent is gone: a killed parent cannot end it. Nothing is lost."""
    parent = parent_process()
    assert parent is not None

    def wait_and_end() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait_and_end, daemon=True).start()


def _finish(settings: Settings) -> Result:
    """Make a run, or resume it; the peak of memory is its own where the system can count it anew."""
    forget_peak()
    folder = Path(settings.run.dir)
    return resume(folder) if RunFolder(folder).config.exists() else run(settings)


def _require_same(settings: Settings, any_rate: bool = False) -> None:
    """Refuse a run that was begun with other settings.

    What the machine chose when the run began stays, whatever the number of jobs now and wherever the grid was
    moved; so do the settings that a resumed run may change (`environment.APART`).

    Raises:
        UserError: Names the settings that differ.
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
        listed = ", ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in changed)
        raise UserError(
            f"{folder} was run with other settings ({listed}); remove it, or name another folder by --to"
        )
