"""The page of a grid: the arms' gains side by side, with their spread over seeds, and every table."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fedsdr.config import Settings
from fedsdr.experiments.comparison import COMPARED, Comparison, sign
from fedsdr.experiments.grid_runs import VERDICTS, GridRun
from fedsdr.report.blocks import Block, Drawing, Links, Tab, Table, Titled
from fedsdr.report.facts import data_fact, model_fact
from fedsdr.report.figures import comparison_figure, curve_figure, forest_figure
from fedsdr.report.gains import BETTER, UNDECIDED, WORSE
from fedsdr.report.page import reload_script, render, tested
from fedsdr.report.sheets import grouped, signed
from fedsdr.storage import Event, write_file

COMMON = {
    "refutation": "Does rectification help?",
    "consistency": "Consistency",
    "arms": "Arms",
    "domains": "By domain",
    "rates": "Learning rates",
}
"""Tables for each step budget, and their titles."""
HEAD = ("frontier",)
"""Tables for each step budget at the head of the page."""
SIGNS = {BETTER: "better", WORSE: "worse", UNDECIDED: "undecided", "": "undecided"}
JUDGED = ("score", "loss")
"""Metrics of the sentences, the forest plot and the curves."""


def write_grid_report(
    folder: Path,
    comparison: Comparison,
    status: str,
    settings: Settings,
    environment: Mapping[str, Any],
    links: Sequence[tuple[str, str]],
    runs: Sequence[GridRun] = (),
    frontier: str = "",
    refresh: int = 0,
) -> Path:
    """Write `report.html` into a grid's folder.

    Args:
        folder: The grid's folder.
        comparison: Its tables.
        status: What is missing; empty for a finished grid.
        settings: Settings of one of its runs; the page shows only those common to all.
        environment: Contents of that run's environment.json.
        links: Name and relative path of each run's page.
        runs: The finished runs, for the curves over rounds.
        frontier: SVG drawing of gain over cost; empty if it was not measured.
        refresh: Seconds after which the page reloads itself, while the grid is running; 0: never.
    """
    tabs: list[Tab] = []
    first: list[Block] = [Drawing(frontier)] * bool(frontier)
    first += [Table(name, comparison.sheets[name]) for name in HEAD if name in comparison.sheets]
    for place, (equal, records) in enumerate(comparison.drawn.items(), start=1):
        prefix = f"{place}-" if len(comparison.drawn) > 1 else ""
        own = [
            Table(name, sheet)
            for name, sheet in comparison.sheets.items()
            if name not in (*COMMON, *HEAD) and name.startswith(prefix)
        ]
        if not records:  # none of its runs is finished yet
            continue
        title = equal[:1].upper() + equal[1:] or "Comparison"
        if differences := list(_differences(records)):
            first += [Titled(title)] * bool(prefix)
            first.append(forest_figure(differences, f"differences-{place}"))
        first.append(own.pop(0))
        tabs.append(
            Tab(f"part-{place}", title, title, [comparison_figure(records, f"comparison-{place}"), *own])
        )
    if curves := list(_curves(runs)):
        tabs.append(Tab("part-rounds", "Rounds", "Over rounds", [curve_figure(curves, "curves")]))
    for name, title in COMMON.items():
        if name in comparison.sheets:
            tabs.append(Tab(f"part-{name}", title, title, [Table(name, comparison.sheets[name])]))
    if links:
        tabs.append(Tab("part-runs", "Runs", "Pages of the runs", [Links(links)]))
    drawn = [record for records in comparison.drawn.values() for record in records]
    arms = dict.fromkeys(record["arm"] for record in drawn if record["arm"] != "base")
    seeds = {record["num_seeds"] for record in drawn}
    clients = environment["data"]["num_train"]
    page = render(
        "grid.html",
        name=folder.resolve().name,
        script=reload_script(refresh),
        status=status,
        facts=[
            ("Arms", ", ".join(arms)),
            ("Seeds", " to ".join(map(str, sorted({min(seeds), max(seeds)}))) + " for each arm"),
            model_fact(settings.model, environment),
            ("Rounds", f"{settings.server.num_rounds}, {len(clients)} clients"),
            data_fact(environment, ", the same for every seed"),
        ],
        notices=comparison.notices,
        sentences=did_they_help(comparison),
        verdicts=tested(comparison.verdicts),
        first=first,
        tabs=tabs,
    )
    path = folder / "report.html"
    write_file(path, page)
    return path


def did_they_help(comparison: Comparison) -> list[str]:
    """Summarise by metric and model which arms are better, worse or undecided against their baseline."""
    sentences = []
    for equal, records in comparison.drawn.items():
        found = (record for record in _differences(records) if record["against"] != "base")
        groups = grouped(((r["metric"], r["model"], r["against"]), r) for r in found)
        for (metric, model, against), own in groups.items():
            words = grouped((r["sign"], f"{r['arm']} {signed(r['difference'])}") for r in own)
            parts = [
                f"{word}: {', '.join(words[word])}" for word in dict.fromkeys(SIGNS.values()) if word in words
            ]
            given = f" ({equal})" if equal else ""
            name = COMPARED[metric][0].capitalize()
            sentences.append(f"{name}, {model} models against {against}{given}: {'; '.join(parts)}.")
    return sentences


def _differences(records: Sequence[Event]) -> Iterator[Event]:
    """Each difference to the base model and to the baseline, with its interval and its sign."""
    for record in (record for record in records if record["metric"] in JUDGED):
        metric = record["metric"]
        for suffix, against in (("_base", "base"), ("_examples" * (metric in VERDICTS), record["against"])):
            difference = record["difference_base" if against == "base" else "difference"]
            if difference is not None:
                yield {
                    "title": f"{COMPARED[metric][0]}, minus {against}",
                    **{key: record[key] for key in ("metric", "arm", "model")},
                    "against": against,
                    "difference": difference,
                    "low": record[f"low{suffix}"],
                    "high": record[f"high{suffix}"],
                    "sign": SIGNS[sign(record, metric, suffix)],
                }


def _curves(runs: Sequence[GridRun]) -> Iterator[Event]:
    """Mean over seeds of each metric, by kind of model, arm and round; all models start at the base model."""
    found = grouped(
        ((f"{COMPARED[metric][0]}, {model} models", run.arm, number), scores["mean"][metric])
        for run in runs
        for number, table in sorted(run.rounds.items())
        for model in ("global", "personalised")
        if model in run.final
        for metric in JUDGED
        if metric in (scores := table.get("global" if number == 0 else model, {})).get("mean", {})
    )
    for (title, arm, number), values in found.items():
        yield {"title": title, "arm": arm, "round": number, "value": fmean(values)}
