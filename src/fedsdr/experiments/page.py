"""The page of a grid: the arms side by side, with the spread over seeds, and every table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsdr.config import Settings
from fedsdr.experiments.comparison import Comparison
from fedsdr.report.blocks import Part, Table, Verdict
from fedsdr.report.figures import comparison_figure
from fedsdr.report.page import render
from fedsdr.storage import write_file

COMMON = {
    "refutation": "Does rectification help?",
    "consistency": "Consistency",
    "arms": "Arms",
    "domains": "By domain",
    "rates": "Learning rates",
}
"""Tables of all budgets, and their titles."""


def write_grid_report(
    folder: Path,
    comparison: Comparison,
    status: str,
    settings: Settings,
    environment: Mapping[str, Any],
) -> Path:
    """Write `report.html` into a grid's folder.

    Args:
        folder: The grid's folder.
        comparison: Its tables.
        status: What is missing; empty for a finished grid.
        settings: Of one of its cells; what is told of them is common to all.
        environment: What that cell's environment.json holds.
    """
    parts: list[Part] = []
    first: list[Table] = []
    for place, (equal, records) in enumerate(comparison.drawn.items(), start=1):
        prefix = f"{place}-" if len(comparison.drawn) > 1 else ""
        own = [
            Table(name, sheet)
            for name, sheet in comparison.sheets.items()
            if name not in COMMON and name.startswith(prefix)
        ]
        first.append(own.pop(0))
        title = equal[:1].upper() + equal[1:] or "Comparison"
        figure = comparison_figure(records, f"comparison-{place}")
        parts.append(Part(f"part-{place}", title, title, [figure, *own]))
    for name, title in COMMON.items():
        if name in comparison.sheets:
            parts.append(Part(f"part-{name}", title, title, [Table(name, comparison.sheets[name])]))
    model, server, data = settings.model, settings.server, environment["data"]
    arms = dict.fromkeys(record["arm"] for records in comparison.drawn.values() for record in records)
    seeds = {record["num_seeds"] for records in comparison.drawn.values() for record in records}
    facts = [
        ("Arms", ", ".join(arm for arm in arms if arm != "base")),
        ("Seeds", " to ".join(map(str, sorted({min(seeds), max(seeds)}))) + " for each arm"),
        ("Model", f"{model.name}, computed in {model.dtype}; {environment['model']['origin']}"),
        ("Rounds", f"{server.num_rounds}, {len(data['num_train'])} clients"),
        ("Data", f"{data['origin']}; {sum(data['num_train'].values()):,} training and"
                 f" {sum(data['num_test'].values()):,} test examples, the same for every seed"),
    ]  # fmt: skip
    path = folder / "report.html"
    page = render(
        "grid.html",
        name=folder.resolve().name,
        status=status,
        facts=facts,
        verdicts=list(map(Verdict.of, comparison.verdicts)),
        no_verdict="No claim was put to the test in this grid.",
        first=first,
        parts=parts,
    )
    write_file(path, page)
    return path
