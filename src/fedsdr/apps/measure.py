"""`fedsdr measure`: what the paper claims, measured on a run and written into its folder.

Each measurement is a file of its own, `measurements/<name>.json`, written as soon as it is made. All need the
data of all clients at one place, so they are for simulations.
"""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from fedsdr import __version__
from fedsdr.apps.grid_results import PLAN, finished, tabulate
from fedsdr.apps.measurements import MEASUREMENTS
from fedsdr.apps.run import checked_round, read_settings
from fedsdr.apps.site import close_sites
from fedsdr.apps.subject import Options, Subject
from fedsdr.errors import UserError
from fedsdr.progress import say
from fedsdr.report.page import write_report
from fedsdr.report.tables import Sheet
from fedsdr.storage import Event, read_json, write_json


def measure_grid(folder: Path, names: Sequence[str], options: Options) -> dict[str, Sheet]:
    """Measure every finished cell of a grid, those apart that have the measurement, and tabulate it anew.

    Raises:
        UserError: As `measure`, of the first cell that cannot be measured.
    """
    for arm, seed, place in read_json(folder / PLAN)["cells"]:
        cell = folder / place
        wanted = [
            name for name in names or MEASUREMENTS if not (cell / "measurements" / f"{name}.json").exists()
        ]
        if wanted and finished(cell):
            say(f"{arm}, seed {seed}")
            measure(cell, wanted if names else [], options)
    sheets, _ = tabulate(folder)
    return sheets


def measure(folder: Path, names: Sequence[str], options: Options) -> dict[str, Event]:
    """Make measurements of a run and write its page anew.

    Args:
        folder: A run's folder, with at least one finished round.
        names: Of `MEASUREMENTS`; none: all that the run has what is needed for.
        options: What the run's folder does not tell.

    Returns:
        Name -> measurement, as written.

    Raises:
        UserError: A name is unknown, a measurement that was asked for by name cannot be made, or none can.
    """
    if unknown := [name for name in names if name not in MEASUREMENTS]:
        raise UserError(f"measurement {unknown[0]!r} is unknown; known are {', '.join(MEASUREMENTS)}")
    settings = read_settings(folder)
    done = checked_round(folder, None)
    subject = Subject(folder, settings, options)
    made: dict[str, Event] = {}
    missing: list[str] = []
    try:
        for name in names or MEASUREMENTS:
            start = time.monotonic()
            say(f"measuring {name}")
            try:
                found = MEASUREMENTS[name](subject)
            except UserError as reason:
                if names:
                    raise
                say(f"  not measured: {reason}")
                missing.append(f"{name}: {reason}")
                continue
            made[name] = {
                "measure": name,
                "version": __version__,
                "command": shlex.join(["fedsdr", "measure", str(folder), "--only", name, *options.words()]),
                "seconds": time.monotonic() - start,
                **found,
            }
            made[name]["notes"] = [f"Of the run after round {done}.", *made[name]["notes"]]
            write_json(folder / "measurements" / f"{name}.json", made[name])
    finally:
        close_sites()
    if not made:
        raise UserError("nothing could be measured. " + "; ".join(missing))
    write_report(folder, settings)
    return made
