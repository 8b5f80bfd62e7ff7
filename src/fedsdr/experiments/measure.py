"""`fedsdr measure`: the paper's claims, measured on a run and written into its folder.

Each measurement has its own file, `measurements/<name>.json`, written as soon as it is complete. All
measurements need the data of all clients in one place, so they work for simulations only.
"""

import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from fedsdr import __version__
from fedsdr.errors import UserError
from fedsdr.experiments.frontier import CONTROLS
from fedsdr.experiments.measured_run import MeasuredRun, Options
from fedsdr.experiments.measurements import MEASUREMENTS
from fedsdr.experiments.results import finished, planned_runs, tabulate
from fedsdr.federation.client_context import close_clients
from fedsdr.progress import say
from fedsdr.report.page import write_report
from fedsdr.report.sheets import Sheet, grouped
from fedsdr.run_folder import RunFolder, checked_round, read_settings
from fedsdr.storage import Event, write_json

NO_CONTROL = (
    f"no finished run of {' or '.join(CONTROLS.values())}, with which arms are compared, has validation"
    " examples, on which its scale is chosen; add rates to the grid, or set = {data = {validation = 0.1}}"
)


def measure_grid(folder: Path, names: Sequence[str], options: Options) -> dict[str, Sheet]:
    """Make the missing measurements of every finished run of a grid, and write its tables again.

    Measurements without the necessary data, such as rewritings with fedit, are reported and skipped.

    Raises:
        UserError: A name or option is wrong, or a requested measurement cannot be made in any run.
    """
    _check(names, options)
    runs = [(arm, seed, run) for arm, seed, run in planned_runs(folder) if finished(run)]
    asked = list(names or MEASUREMENTS)
    missing: dict[str, str] = {}
    if runs and "frontier" in asked and not any(_is_control(run) for _, _, run in runs):
        asked.remove("frontier")
        missing["frontier"] = NO_CONTROL
        if not names:
            say(f"frontier is not measured: {NO_CONTROL}")
    had: set[str] = set()
    for arm, seed, run in runs:
        there = {name for name in asked if RunFolder(run).measurement(name).exists()}
        had |= there
        if wanted := [name for name in asked if name not in there]:
            say(f"{arm}, seed {seed}")
            made, lacking = _measure(run, wanted, options)
            had |= made.keys()
            missing |= lacking
    for name in names:
        if name not in had:
            reason = missing.get(name, "no run is finished")
            raise UserError(f"{folder}: {name} could not be measured in any run: {reason}")
    comparison, _ = tabulate(folder)
    return comparison.sheets


def measure(folder: Path, names: Sequence[str], options: Options) -> dict[str, Event]:
    """Make measurements of a run and write its page again.

    Args:
        folder: A run's folder, with at least one finished round.
        names: Names in `MEASUREMENTS`; empty: all that the run has the data for.
        options: Inputs that the run's folder does not contain.

    Returns:
        Name -> measurement, as written.

    Raises:
        UserError: A name or option is wrong, a requested measurement cannot be made (the others are made), or
            none can be made.
    """
    _check(names, options)
    made, missing = _measure(folder, names or list(MEASUREMENTS), options)
    if missing and (names or not made):
        reasons = grouped((reason, name) for name, reason in missing.items())
        listed = "; ".join(f"{', '.join(some)}: {reason}" for reason, some in reasons.items())
        raise UserError(f"{folder}: not measured: {listed}")
    return made


def _is_control(run: Path) -> bool:
    settings = read_settings(run)
    return settings.method in CONTROLS.values() and settings.data.validation > 0


def _check(names: Sequence[str], options: Options) -> None:
    """Reject unknown names, and options that no requested measurement uses.

    Raises:
        UserError: States how to fix it.
    """
    if unknown := [name for name in names if name not in MEASUREMENTS]:
        listed = ", ".join(map(repr, unknown))
        raise UserError(f"measurement {listed} is unknown; known are {', '.join(MEASUREMENTS)}")
    used = {word for name in names or MEASUREMENTS for word in options.words(name)}
    for name in MEASUREMENTS:
        if idle := [word for word in options.words(name)[::2] if word not in used]:
            raise UserError(
                f"{idle[0]} belongs to {name}, which is not requested: leave it out, or add {name}"
            )


def _measure(folder: Path, names: Sequence[str], options: Options) -> tuple[dict[str, Event], dict[str, str]]:
    """Make all possible measurements, and report why others are not; write the page if any was made."""
    settings = read_settings(folder)
    done = checked_round(folder, None)
    # All cores, or OMP_NUM_THREADS, though a run of a grid that had several at a time took its share of them.
    alone = settings.run.model_copy(
        update={"threads": int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0] or 0)}
    )
    run = MeasuredRun(folder, settings.model_copy(update={"run": alone}), options)
    made: dict[str, Event] = {}
    missing: dict[str, str] = {}
    try:
        for name in names:
            start = time.monotonic()
            say(f"measuring {name}")
            try:
                found = MEASUREMENTS[name](run)
            except UserError as reason:
                say(f"  not measured: {reason}")
                missing[name] = str(reason)
                continue
            words = ["fedsdr", "measure", str(folder), "--only", name, *options.words(name)]
            made[name] = {
                "measure": name,
                "version": __version__,
                "command": shlex.join(words),
                "seconds": time.monotonic() - start,
                **found,
                "notes": [f"Of the run after round {done}.", *found["notes"]],
            }
            write_json(RunFolder(folder).measurement(name), made[name])
    finally:
        close_clients()
    if made:
        write_report(folder, settings)
    return made, missing
