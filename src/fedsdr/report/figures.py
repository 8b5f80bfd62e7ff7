"""The figures of the page, each made from records of `sheets` and `events`.

`plots` computes their layout, `plots.html` draws them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fedsdr.metrics import Scores
from fedsdr.report.events import TEXTS
from fedsdr.report.maps import HeatPanel, ScatterPanel, palette
from fedsdr.report.plots import (
    MOST_PANELS,
    BarPanel,
    LinePanel,
    Lines,
    Series,
    Value,
    bar_groups,
    bar_panel,
    line_groups,
    line_panel,
)
from fedsdr.report.sheets import MODELS, NONE, grouped, loss_records
from fedsdr.stats import seed_interval, wilson
from fedsdr.storage import Event

AnyPanel = LinePanel | BarPanel | HeatPanel | ScatterPanel


@dataclass(frozen=True)
class Figure:
    """Panels of one kind under one caption."""

    key: str
    """Used for the figure's ids and its CSV file."""
    caption: str
    note: str
    legend: tuple[Series, ...]
    panels: tuple[AnyPanel, ...]
    records: Sequence[Event]

    @property
    def kind(self) -> str:
        """Type of its panels: lines, bars, heat or scatter."""
        return self.panels[0].kind


def score_figure(records: Sequence[Event]) -> Figure | None:
    """Scores as bars with intervals; None if nothing was scored."""
    found = {(r["domain"], r["model"]): r for r in records if r["score"] is not None}
    if not found:
        return None
    models = {model: Series(model, f"s-{model}") for _, model in found}
    shown = {place: (r["score"], (r["low"], r["high"])) for place, r in found.items()}
    domains = dict.fromkeys(domain for domain, _ in found)
    groups = {
        domain: {series: shown.get((domain, model)) for model, series in models.items()} for domain in domains
    }
    return Figure(
        "scores",
        "Exact score by domain",
        "Share of right answers, 0 to 1; lines are 95 % intervals.",
        tuple(models.values()),
        (bar_panel("share of right answers", groups, high=1.0),),
        records,
    )


def training_figure(records: Sequence[Event], adapters: Mapping[str, str]) -> Figure | None:
    """Training loss over rounds: the mean over clients, then each client.

    Args:
        records: From `events.train_records`.
        adapters: Trained adapters, by the name in the log -> description.
    """
    if not records:
        return None
    series = {name: Series(description, _style(name)) for name, description in adapters.items()}
    points = [(r["client"], series[r["adapter"]], r["round"], r["loss"]) for r in records]
    clients = dict(sorted(line_groups(points).items()))
    losses = grouped(((one, number), loss) for _, one, number, loss in points)
    title = f"mean of {len(clients)} clients"
    mean = line_groups((title, *place, fmean(values)) for place, values in losses.items())
    return Figure(
        "training",
        "Training loss over rounds, by client",
        "Nats per response token, mean over a client's steps of the round; each panel has its own scale."
        + limited(1 + len(clients)),
        tuple(series.values()),
        line_panels(mean | clients),
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
    base = loss_records({0: tables.get(0, {})}, ("base",))
    trained = loss_records(later, models)
    starts = [record | {"model": model} for record in base for model in models]
    panels = line_groups(
        (r["domain"], series[r["model"], r["on"]], r["round"], r["loss"]) for r in starts + trained
    )
    if not panels:
        return None
    mean = {"mean of domains": panels.pop("mean")} if "mean" in panels else {}
    ordered = mean | dict(sorted(panels.items()))
    return Figure(
        "held-out-loss",
        "Held-out loss over rounds, by domain",
        "Nats per response token of the test examples; round 0 is the base model; each panel has its own"
        " scale." + limited(len(ordered)),
        tuple(kind for kind in series.values() if any(kind in lines for lines in ordered.values())),
        line_panels(ordered),
        base + trained,
    )


def paradox_figure(records: Sequence[Event]) -> Figure | None:
    """Bars of the effects of rewriting, by client."""
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
        # Rates exist for two texts, the others for three.
        found = [r for r in records if not (weight and r["text"] == TEXTS[0])]
        groups = bar_groups((r["client"], series[r["text"]], _value(r, name, weight)) for r in found)
        panels.append(bar_panel(title, groups, high=1.0 if weight else None))
    return Figure(
        "paradox",
        "Rewrite paradox, by client",
        "Before fall-back (rewriting) and after (as taught), with the true responses; lines are 95 %"
        " intervals of shares." + limited(len({record["client"] for record in records})),
        tuple(series.values()),
        tuple(panels),
        records,
    )


def comparison_figure(records: Sequence[Event], key: str) -> Figure:
    """Bars of scores and losses of the arms of a grid, with their uncertainty over seeds."""
    models = dict.fromkeys(record["model"] for record in records)
    series = {model: Series(model if model in MODELS else "base", _style(model)) for model in models}
    titles = {
        "score": "exact score, share of right answers",
        "loss": "loss on true responses, nats per token",
        "loss_distilled": "loss on rewritings, nats per token",
        "unsupported_rate": "unsupported answers, share",
    }
    means = [(r["mean"], seed_interval(r["mean"], r["sd"], r["num_seeds"])) for r in records]
    bars = grouped(
        (r["metric"], (r["arm"], series[r["model"]], mean)) for r, mean in zip(records, means, strict=True)
    )
    return Figure(
        key,
        "Means over domains and seeds",
        "Lines are 95 % intervals of the mean over seeds (Student's t); all seeds share the test examples."
        + limited(len({record["arm"] for record in records})),
        tuple(series.values()),
        tuple(bar_panel(title, bar_groups(bars[m]), digits=3) for m, title in titles.items() if m in bars),
        records,
    )


def forest_figure(records: Sequence[Event], key: str) -> Figure:
    """Differences of the arms of a grid, to the base model and to the baseline, with their intervals.

    Args:
        records: With arm, model, title, difference, low, high and sign ("better", "worse" or "undecided").
        key: Key of the figure.
    """
    series = {sign: Series(sign, f"s-{sign}") for sign in ("better", "worse", "undecided")}
    bars = grouped(
        (r["title"], (f"{r['arm']}, {r['model'][0]}", series[r["sign"]], _with_ends(r))) for r in records
    )
    return Figure(
        key,
        "Differences to the base model and to the baseline",
        "Means over domains and seeds, with 95 % intervals: over seeds and test examples where answers were"
        " judged, else over seeds; colours after Holm's correction. g: global models, p: personalised ones."
        + limited(max(len(found) for found in bars.values())),
        tuple(one for one in series.values() if any(r["sign"] == one.name for r in records)),
        tuple(bar_panel(title, bar_groups(found), digits=3, is_forest=True) for title, found in bars.items()),
        records,
    )


def curve_figure(records: Sequence[Event], key: str) -> Figure:
    """A curve for each arm of a grid over rounds; records have title, arm, round and value."""
    series = palette(record["arm"] for record in records)
    points = [(r["title"], series[r["arm"]], r["round"], r["value"]) for r in records]
    return Figure(
        key,
        "The arms over rounds",
        "Means over domains and seeds of the rounds that were evaluated (eval.every).",
        tuple(series.values()),
        line_panels(line_groups(points)),
        records,
    )


def _with_ends(record: Event) -> Value:
    return record["difference"], None if record["low"] is None else (record["low"], record["high"])


def line_panels(panels: Lines) -> tuple[LinePanel, ...]:
    """One panel per title; if there are too many, only the first."""
    return tuple(line_panel(title, lines) for title, lines in list(panels.items())[:MOST_PANELS])


def limited(num: int) -> str:
    """Note for a figure that does not draw all its panels."""
    return f" The page draws {MOST_PANELS} of {num}; the CSV file has all." if num > MOST_PANELS else ""


def _value(record: Event, name: str, weight: str | None) -> Value | None:
    """A number, with Wilson's interval if it is a share of a count."""
    if (value := record[name]) is None:
        return None
    return value, wilson(value, record[weight]) if weight else None


def _style(name: str) -> str:
    """Colour of a model or adapter: the shared adapter's is the global model's."""
    if name == "shared-distilled":  # shared-raw has the shared adapter's colour
        return "s-new"
    if name == NONE:
        return "s-base"
    return "s-global" if name.startswith(("shared", "global")) else "s-personalised"
