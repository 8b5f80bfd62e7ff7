"""Layout of the plots: positions of lines, bars and ticks, in units of the SVG's viewBox.

`plots.html` draws the result. Every panel is as wide as a phone, so that its text keeps its size; a page puts
several side by side.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

WIDTH = 340
HEIGHT = 190
MOST_PANELS = 24
"""Maximum number of panels drawn; the CSV files have all."""
MOST_LETTERS = 14
BAR, GAP = 9, 9  # height of a bar, and the space between two groups of bars


@dataclass(frozen=True)
class Series:
    """One type of line or bar, the same in all panels of a figure."""

    name: str
    style: str
    """CSS class of the colour."""
    dashed: bool = False
    mark: str = ""
    """Mark of its points in a scatter plot (`maps.MARKS`)."""


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` onto positions from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Position of a value, rounded to screen resolution."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


Tick = tuple[float, str]
Value = tuple[float, tuple[float, float] | None]
"""A number, and the ends of its interval if they are known."""
Lines = dict[str, dict[Series, dict[int, float]]]
"""Title of a panel -> series -> round -> value."""
Bars = dict[str, dict[Series, Value | None]]
"""Label -> series -> value; None if missing."""


def line_groups(points: Iterable[tuple[str, Series, int, float]]) -> Lines:
    """Sort points by title of the panel, series and round."""
    panels: Lines = {}
    for title, series, number, value in points:
        panels.setdefault(title, {}).setdefault(series, {})[number] = value
    return panels


def bar_groups(bars: Iterable[tuple[str, Series, Value | None]]) -> Bars:
    """Sort bars by label; beyond the limit the last labels are kept, which include the totals."""
    groups: Bars = {}
    for label, series, value in bars:
        groups.setdefault(label, {})[series] = value
    return {label: groups[label] for label in [*groups][-MOST_PANELS:]}


@dataclass(frozen=True)
class Panel:
    """One plot of a figure."""

    title: str
    summary: str
    """Text description of the plot, for accessibility."""
    height: float


@dataclass(frozen=True)
class Line:
    """Points of one series, joined in the given order."""

    series: Series
    points: tuple[tuple[float, float, str], ...]
    """x, y and tooltip."""


@dataclass(frozen=True)
class LinePanel(Panel):
    """Lines over rounds."""

    kind: ClassVar[str] = "lines"
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left: float


@dataclass(frozen=True)
class Bar:
    """One bar from zero, with an optional interval."""

    series: Series
    y: float
    end: float
    whisker: tuple[float, float] | None
    text: str


@dataclass(frozen=True)
class BarPanel(Panel):
    """Groups of bars, stacked vertically."""

    kind: ClassVar[str] = "bars"
    groups: tuple[tuple[str, str, float, tuple[Bar, ...]], ...]
    """Shortened label, full label, height of its middle, bars."""
    marks: tuple[tuple[float, float, float, str], ...]
    """x, top and bottom of a group's reference, and its tooltip."""
    ticks: tuple[Tick, ...]
    left: float
    zero: float
    """Position of 0, where bars begin."""
    is_forest: bool
    """Draw points with intervals around a line at 0, instead of bars."""


def line_panel(title: str, lines: Mapping[Series, Mapping[int, float]]) -> LinePanel:
    """Lay out lines over rounds; the vertical axis spans the values, not zero.

    Args:
        title: Subject of the panel, such as a client.
        lines: Series -> round -> value, for at least one round.
    """
    points = {series: sorted(by_round.items()) for series, by_round in lines.items()}
    rounds, values = zip(*(point for some in points.values() for point in some), strict=True)
    y_ticks = nice_ticks(min(values), max(values))
    labels = tick_labels(y_ticks)
    left = 10 + 6.5 * max(map(len, ["round", *labels]))
    first, last = min(rounds), max(rounds)
    # A single round is centred.
    x = Scale(first, last, left + 8, WIDTH - 12) if last > first else Scale(first - 1, last + 1, left, WIDTH)
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - 26, 12)
    every = math.ceil((last - first + 1) / 8)
    return LinePanel(
        title,
        "; ".join(
            f"{series.name} " + ", ".join(f"{v:.3f} in round {r}" for r, v in (some[0], some[-1]))
            for series, some in points.items()
        ),
        HEIGHT,
        tuple(
            Line(
                series,
                tuple((x.at(r), y.at(v), f"{title}, {series.name}, round {r}: {v:.3f}") for r, v in some),
            )
            for series, some in points.items()
        ),
        tuple((x.at(r), str(r)) for r in range(first, last + 1, every)),
        tuple((y.at(tick), label) for tick, label in zip(y_ticks, labels, strict=True)),
        left,
    )


def bar_panel(
    title: str,
    groups: Mapping[str, Mapping[Series, Value | None]],
    high: float | None = None,
    digits: int = 2,
    marks: Mapping[str, tuple[str, float]] = MappingProxyType({}),
    is_forest: bool = False,
) -> BarPanel:
    """Lay out groups of horizontal bars from zero, or the points of a forest plot.

    Args:
        title: The measure, with its unit.
        groups: From `bar_groups`; a label is a client, a domain or an arm.
        high: Right end of the axis; None: as required by the values.
        digits: Decimals in text descriptions.
        marks: Label -> name and value of a reference for its bars, such as chance.
        is_forest: Whether to draw differences as points with intervals, which may be negative.
    """
    found = [value for bars in groups.values() for value in bars.values() if value]
    ends = [end for value, whisker in found for end in (value, *(whisker or ()))]
    ends += [value for _, value in marks.values()]
    ticks = nice_ticks(min([0.0, *ends]), max([0.0, *ends]) if high is None else high)
    left = 12 + 7.4 * min(MOST_LETTERS, max(map(len, groups)))
    x = Scale(ticks[0], ticks[-1], left, WIDTH - 14)
    placed, lines = [], []
    top = 6.0
    for label, bars in groups.items():
        bottom = top + len(bars) * BAR
        row = tuple(
            Bar(
                series,
                top + number * BAR,
                x.at(value[0]),
                (x.at(value[1][0]), x.at(value[1][1])) if value[1] else None,
                f"{label}, {series.name}: {_in_words(value, digits)}",
            )
            for number, (series, value) in enumerate(bars.items())
            if value
        )
        placed.append((shortened(label), label, (top + bottom) / 2, row))
        for name, value in [marks[label]] if label in marks else []:
            lines.append((x.at(value), top - 2, bottom + 2, f"{label}, {name}: {value:.{digits}f}"))
        top = bottom + GAP
    return BarPanel(
        title,
        "; ".join(bar.text for _, _, _, row in placed for bar in row) or "no values",
        top + 20,
        tuple(placed),
        tuple(lines),
        tuple((x.at(tick), label) for tick, label in zip(ticks, tick_labels(ticks), strict=True)),
        left,
        x.at(0),
        is_forest,
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers in at most 6 steps; the first and last enclose low and high."""
    if high <= low:
        high = low + (abs(low) or 1.0) / 10
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Format ticks with as many decimals as needed to distinguish them."""
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return [f"{tick:,.{digits}f}" for tick in ticks]


def shortened(label: str) -> str:
    """Shorten a label to fit next to bars; the tooltip has the full label."""
    return label if len(label) <= MOST_LETTERS else label[: MOST_LETTERS - 1] + "…"


def _in_words(value: Value, digits: int) -> str:
    share, whisker = value
    if whisker is None:
        return f"{share:.{digits}f}"
    return f"{share:.{digits}f}, 95 % interval {whisker[0]:.{digits}f} to {whisker[1]:.{digits}f}"
