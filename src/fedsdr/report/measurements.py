"""The measurements of a run on its page: which exist, and what each shows in which tab.

A measurement is a file `measurements/<name>.json` in the run's folder with measure, command, seconds, notes
and records, and for some measurements examples and verdicts.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from fedsdr.errors import UserError
from fedsdr.report.alignment import likeness_blocks, map_blocks, transfer_blocks
from fedsdr.report.answers import benchmark_blocks, paradox_blocks, retention_blocks, win_rate_blocks
from fedsdr.report.blocks import Block, Table, Text, Titled
from fedsdr.report.consistency import consistency_blocks, survival_blocks
from fedsdr.report.frontier import frontier_blocks
from fedsdr.report.sheets import Sheet
from fedsdr.run_folder import RunFolder
from fedsdr.storage import Event, read_json

SHOWN: dict[str, tuple[str, str, Callable[[str, Event], list[Block]]]] = {
    "alignment": ("alignment", "Words", likeness_blocks),
    "gradients": ("alignment", "Gradients", likeness_blocks),
    "transfer": ("alignment", "Transfer", transfer_blocks),
    "map": ("alignment", "Map", map_blocks),
    "paradox": ("paradox", "As checked", paradox_blocks),
    "consistency": ("consistency", "Updates", consistency_blocks),
    "survival": ("consistency", "What is left of a client's gain", survival_blocks),
    "benchmarks": ("benchmarks", "Benchmarks", benchmark_blocks),
    "retention": ("benchmarks", "Retention", retention_blocks),
    "frontier": ("benchmarks", "Cost and gain", frontier_blocks),
    "winrate": ("benchmarks", "Win rates", win_rate_blocks),
}
"""Name of a measurement -> tab, heading, and function that makes its blocks."""


def read_measurements(folder: Path) -> dict[str, Event]:
    """Measurements of a run by name, in the order of `SHOWN`; others come last.

    Raises:
        UserError: A file is damaged.
    """
    paths = RunFolder(folder).measurements()
    names = [*(name for name in SHOWN if name in paths), *(name for name in paths if name not in SHOWN)]
    found = {name: read_json(paths[name]) for name in names}
    for name, record in found.items():
        if not isinstance(record, dict) or {"records", "notes", "command", "seconds"} - record.keys():
            raise UserError(f"{paths[name]} is not a valid measurement file: remove it, or measure again")
    return found


def measurement_tabs(measurements: Mapping[str, Event]) -> dict[str, list[Block]]:
    """Tab -> blocks of a run's measurements; no entry for a tab without any."""
    tabs: dict[str, list[Block]] = {}
    for name in (name for name in measurements if name in SHOWN):
        record, (tab, heading, blocks) = measurements[name], SHOWN[name]
        shown = blocks(name, record) if record["records"] else [Text("Nothing could be measured.")]
        made = f"Measured by `{record['command']}` in {record['seconds']:,.0f} s."
        note = Text(" ".join([*record["notes"], made]), "note")
        tabs.setdefault(tab, []).extend([Titled(heading), *shown, note])
    return tabs


def measurement_sheets(measurements: Mapping[str, Event]) -> list[Sheet]:
    """The tables of measurements, for a terminal."""
    return [
        block.sheet
        for name, record in measurements.items()
        if record["records"]
        for block in SHOWN[name][2](name, record)
        if isinstance(block, Table)
    ]


def verdicts(measurements: Mapping[str, Event]) -> list[Event]:
    """Verdicts on claims: {"claim", "verdict", "text"} each."""
    return [one for record in measurements.values() for one in record.get("verdicts", ())]


def seconds_blocks(measurements: Mapping[str, Event]) -> list[Block]:
    """Duration of each measurement; empty if there are none."""
    keys = ("measure", "seconds", "command")
    records = [{key: record[key] for key in keys} for record in measurements.values()]
    rows = tuple((r["measure"], f"{r['seconds']:,.1f}", r["command"]) for r in records)
    sheet = Sheet("Measurements", "lrl", ("measurement", "seconds", "command"), rows, tuple(records))
    return [Table("measurements", sheet)] if rows else []
