"""The page of a grid: the arms side by side, with the spread over seeds, and every table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsdr.config import Settings
from fedsdr.experiments.comparison import Comparison
from fedsdr.report.blocks import Block, Drawing, Tab, Table
from fedsdr.report.facts import data_fact, model_fact
from fedsdr.report.figures import comparison_figure
from fedsdr.report.page import render, tested
from fedsdr.storage import write_file

COMMON = {
    "frontier": "Gain at equal cost",
    "refutation": "Does rectification help?",
    "consistency": "Consistency",
    "arms": "Arms",
    "domains": "By domain",
    "rates": "Learning rates",
}
"""Tables of all step budgets, and their titles."""


def write_grid_report(
    folder: Path,
    comparison: Comparison,
    status: str,
    settings: Settings,
    environment: Mapping[str, Any],
    frontier: str = "",
) -> Path:
    """Write `report.html` into a grid's folder.

    Args:
        folder: The grid's folder.
        comparison: Its tables.
        status: What is missing; empty for a finished grid.
        settings: Of one of its runs; what the page shows of them is common to all.
        environment: What that run's environment.json holds.
        frontier: Drawing of gain over cost, as SVG; empty where it was not measured.
    """
    tabs: list[Tab] = []
    first: list[Table] = []
    for place, (equal, records) in enumerate(comparison.drawn.items(), start=1):
        prefix = f"{place}-" if len(comparison.drawn) > 1 else ""
        own = [
            Table(name, sheet)
            for name, sheet in comparison.sheets.items()
            if name not in COMMON and name.startswith(prefix)
        ]
        if not records:  # none of its runs is finished yet
            continue
        first.append(own.pop(0))
        title = equal[:1].upper() + equal[1:] or "Comparison"
        tabs.append(
            Tab(f"part-{place}", title, title, [comparison_figure(records, f"comparison-{place}"), *own])
        )
    for name, title in COMMON.items():
        if name in comparison.sheets:
            table = Table(name, comparison.sheets[name])
            blocks: list[Block] = [Drawing(frontier), table] if name == "frontier" else [table]
            tabs.append(Tab(f"part-{name}", title, title, blocks))
    drawn = [record for records in comparison.drawn.values() for record in records]
    arms = dict.fromkeys(record["arm"] for record in drawn if record["arm"] != "base")
    seeds = {record["num_seeds"] for record in drawn}
    clients = environment["data"]["num_train"]
    page = render(
        "grid.html",
        name=folder.resolve().name,
        script="",
        status=status,
        facts=[
            ("Arms", ", ".join(arms)),
            ("Seeds", " to ".join(map(str, sorted({min(seeds), max(seeds)}))) + " for each arm"),
            model_fact(settings.model, environment),
            ("Rounds", f"{settings.server.num_rounds}, {len(clients)} clients"),
            data_fact(environment, ", the same for every seed"),
        ],
        notices=[],
        sentence="",
        verdicts=tested(comparison.verdicts),
        first=first,
        tabs=tabs,
    )
    path = folder / "report.html"
    write_file(path, page)
    return path
