"""Which plots the page has: the figures, each made from records of `tables` and `events`.

`plots` lays them out, `plots.html` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsdr.config import Settings
from fedsdr.methods import METHODS
from fedsdr.metrics import Scores
from fedsdr.report.events import TEXTS
from fedsdr.report.maps import HeatPanel, ScatterPanel
from fedsdr.report.plots import MOST_PANELS, BarPanel, LinePanel, Series, bar_panel, line_panel
from fedsdr.report.sheets import MODELS, NONE, loss_records
from fedsdr.stats import seed_interval, wilson
from fedsdr.storage import Event

Panel = LinePanel | BarPanel | HeatPanel | ScatterPanel


@dataclass(frozen=True)
class Figure:
    """Panels of one kind under one caption."""

    key: str
    """Names the figure's ids and its CSV file."""
    caption: str
    note: str
    legend: tuple[Series, ...]
    panels: tuple[Panel, ...]
    records: Sequence[Event]

    @property
    def kind(self) -> str:
        """How its panels are drawn: lines, bars, heat or scatter."""
        return self.panels[0].kind


def score_figure(records: Sequence[Event]) -> Figure | None:
    """Scores as bars with intervals; None where nothing was scored."""
    found = [record for record in records if record["score"] is not None]
    if not found:
        return None
    models = {record["model"]: Series(record["model"], f"s-{record['model']}") for record in found}
    used = tuple(models.values())
    groups: dict[str, dict[Series, Any]] = {record["domain"]: dict.fromkeys(used) for record in found}
    for record in found:
        value = (record["score"], (record["low"], record["high"]))
        groups[record["domain"]][models[record["model"]]] = value
    return Figure(
        "scores",
        "Exact score by domain",
        "Share of right answers, 0 to 1; lines are 95 % intervals.",
        used,
        (bar_panel("share of right answers", groups, high=1.0),),
        records,
    )


def training_figure(records: Sequence[Event], settings: Settings) -> Figure | None:
    """Training loss over rounds: the mean of the clients, then each client."""
    if not records:
        return None
    all_series = {
        name: Series(description, _style(name))
        for name, description in METHODS[settings.method].logged().items()
    }
    losses: dict[str, dict[Series, dict[int, float]]] = {}
    of_round: dict[Series, dict[int, list[float]]] = {}
    for record in records:
        series, number = all_series[record["adapter"]], record["round"]
        losses.setdefault(record["client"], {}).setdefault(series, {})[number] = record["loss"]
        of_round.setdefault(series, {}).setdefault(number, []).append(record["loss"])
    mean = {
        series: {number: sum(values) / len(values) for number, values in by_round.items()}
        for series, by_round in of_round.items()
    }
    panels = {f"mean of {len(losses)} clients": mean, **dict(sorted(losses.items()))}
    return Figure(
        "training",
        "Training loss over rounds, by client",
        "Nats per response token, mean over a client's steps of the round; each panel has its own scale."
        + limited(len(panels)),
        tuple(all_series.values()),
        line_panels(panels),
        records,
    )


def held_out_figure(tables: Mapping[int, Scores]) -> Figure | None:
    """Held-out loss over the evaluated rounds; both models start from the base model in round 0."""
    later = {number: table for number, table in tables.items() if number}
    models = [model for model in MODELS[1:] if any(model in table for table in (later or tables).values())]
    series = {
        (model, on): Series(f"{model} model, on {on}", _style(model), dashed=on == "rewritings")
        for model in models
        for on in ("true responses", "rewritings")
    }
    panels: dict[str, dict[Series, dict[int, float]]] = {}
    for record in loss_records({0: tables.get(0, {})}, ("base",)):
        for model in models:
            of_domain = panels.setdefault(record["domain"], {})
            of_domain.setdefault(series[model, record["on"]], {})[0] = record["loss"]
    for record in loss_records(later, models):
        of_domain = panels.setdefault(record["domain"], {})
        of_domain.setdefault(series[record["model"], record["on"]], {})[record["round"]] = record["loss"]
    if not panels:
        return None
    ordered = dict(sorted(panels.items(), key=lambda item: (item[0] != "mean", item[0])))
    if "mean" in ordered:
        ordered = {"mean of domains": ordered.pop("mean"), **ordered}
    return Figure(
        "held-out-loss",
        "Held-out loss over rounds, by domain",
        "Nats per response token of the test examples; round 0 is the base model; each panel has its own"
        " scale." + limited(len(panels)),
        tuple(kind for kind in series.values() if any(kind in lines for lines in panels.values())),
        line_panels(ordered),
        loss_records({0: tables.get(0, {})}, ("base",)) + loss_records(later, models),
    )


def paradox_figure(records: Sequence[Event]) -> Figure | None:
    """Bars of what rewriting changes, by client."""
    if not records:
        return None
    series = {
        text: Series(text, style) for text, style in zip(TEXTS, ("s-true", "s-new", "s-taught"), strict=True)
    }
    panels = []
    for title, name, weight in (
        ("omits: share of checkable responses", "omission_rate", "num_checkable"),
        ("unsupported: share of responses", "unsupported_rate", "num_examples"),
        ("length: words over true words", "length_ratio", None),
        ("fillers per 100 words", "filler_rate", None),
        ("repeats: share of 3-grams", "redundancy", None),
    ):
        groups: dict[str, dict[Series, Any]] = {}
        for record in records:
            # A rate is of two texts, the others are of three.
            if record["text"] == TEXTS[0] and weight:
                continue
            value = record[name]
            whisker = wilson(value, record[weight]) if weight and value is not None else None
            bars = groups.setdefault(record["client"], {})
            bars[series[record["text"]]] = None if value is None else (value, whisker)
        shown = {client: groups[client] for client in [*groups][-MOST_PANELS:]}
        panels.append(bar_panel(title, shown, high=1.0 if weight else None))
    return Figure(
        "paradox",
        "Rewrite paradox, by client",
        "Before fall-back (rewriting) and after (as taught), beside the true responses; lines are 95 %"
        " intervals of shares." + limited(len(groups)),
        tuple(series.values()),
        tuple(panels),
        records,
    )


def comparison_figure(records: Sequence[Event], key: str) -> Figure:
    """Bars of scores and losses of the arms of a grid, with what the seeds leave open."""
    models = dict.fromkeys(record["model"] for record in records)
    series = {model: Series(model if model in MODELS else "base", _style(model)) for model in models}
    panels = []
    for metric, title in (
        ("score", "exact score, share of right answers"),
        ("loss", "loss on true responses, nats per token"),
        ("loss_distilled", "loss on rewritings, nats per token"),
        ("unsupported_rate", "unsupported answers, share"),
    ):
        groups: dict[str, dict[Series, Any]] = {}
        for record in records:
            if record["metric"] == metric:
                whisker = seed_interval(record["mean"], record["sd"], record["num_seeds"])
                groups.setdefault(record["arm"], {})[series[record["model"]]] = (record["mean"], whisker)
        if groups:
            panels.append(bar_panel(title, groups, digits=3))
    return Figure(
        key,
        "Means over domains and seeds",
        "Lines are 95 % intervals of the mean over seeds (Student's t); all seeds share the test examples.",
        tuple(series.values()),
        tuple(panels),
        records,
    )


def line_panels(panels: Mapping[str, Mapping[Series, Mapping[int, float]]]) -> tuple[LinePanel, ...]:
    """One panel for each title, of series -> round -> value; of many, the first."""
    return tuple(
        line_panel(title, {series: sorted(points.items()) for series, points in lines.items()})
        for title, lines in list(panels.items())[:MOST_PANELS]
    )


def limited(num: int) -> str:
    """What a figure says that does not draw all its panels."""
    return f" The page draws {MOST_PANELS} of {num}; the CSV file has all." if num > MOST_PANELS else ""


def _style(name: str) -> str:
    """Colour of a model or adapter: the shared adapter's is the global model's."""
    if name == "shared-distilled":  # beside shared-raw
        return "s-new"
    if name == NONE:
        return "s-base"
    return "s-global" if name.startswith(("shared", "global")) else "s-personalised"
