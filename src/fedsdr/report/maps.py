"""Layout of two-dimensional plots: heat maps of matrices, and scatter plots.

`plots.html` draws them. Colours are steps of a ramp, which page.css mixes so that numbers on them stay
readable in both themes and on paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedsdr.report.plots import WIDTH, Panel, Scale, Series, Tick, shortened

STEPS = 10
"""Steps of a ramp from no colour to full colour."""
MOST_NUMBERS = 10
"""Matrices with more rows or columns than this have no numbers in their cells."""
MOST_ROWS = 40
"""Maximum number of rows or columns drawn; the CSV file has all."""
MOST_HINTS = 400
"""Cells of larger matrices have no tooltip, to keep the page small."""
LETTER = 6.5  # width of a letter in a label
DIGIT, SMALL_DIGIT = 6.3, 5.4  # and in a number
Matrix = Mapping[tuple[str, str], float | None]
"""(row, column) -> value; None or no entry if missing."""

MARKS = {
    "●": "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "▲": "m0-3.6l3.4 6h-6.8z",
    "■": "m-2.7-2.7h5.4v5.4h-5.4z",
    "◆": "m0-3.9l3.6 3.9l-3.6 3.9l-3.6-3.9z",
    "▼": "m0 3.6l3.4-6h-6.8z",
    "✚": "m-1.2-3.6h2.4v2.4h2.4v2.4h-2.4v2.4h-2.4v-2.4h-2.4v-2.4h2.4z",
}
"""Mark of a series in the legend -> the same mark as a path, so that colour is not needed."""
NUM_COLOURS = 10
SCATTER_HEIGHT = 300


@dataclass(frozen=True)
class Ramp:
    """Colours of values from `low` to `high`, or two-sided around 0 if `low` is negative."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None], is_change: bool = False) -> Ramp:
        """Ramp covering all values: two-sided for changes, and if any is negative."""
        found = [value for value in values if value is not None] or [0.0]
        low, high = min(found), max(found)
        if low < 0 or is_change:
            high = max(high, -low) or 1.0
            return cls(-high, high)
        return cls(low, high)

    def style(self, value: float) -> str:
        """CSS class: c10 to c1 below 0, h0 to h10 above; h5 if all values are equal."""
        step = round(STEPS * (value - max(self.low, 0.0)) / self.span) if self.span else STEPS // 2
        return f"c{-step}" if step < 0 else f"h{step}"

    @property
    def span(self) -> float:
        """Length of one side of the ramp."""
        return self.high - max(self.low, 0.0)

    @property
    def digits(self) -> int:
        """Decimals that resolve a tenth of the ramp: 2 to 4."""
        return min(4, max(2, 1 - math.floor(math.log10(self.span)))) if self.span else 2

    @property
    def styles(self) -> list[str]:
        """All classes from low to high."""
        below = [f"c{step}" for step in range(STEPS, 0, -1)] if self.low < 0 else []
        return below + [f"h{step}" for step in range(STEPS + 1)]


@dataclass(frozen=True)
class HeatCell:
    """One value of a matrix."""

    x: float
    y: float
    style: str
    shown: str
    """Its number, if there is room."""
    hint: str
    """Tooltip with its place and number, if there is no room."""


@dataclass(frozen=True)
class HeatPanel(Panel):
    """A matrix as coloured cells, with its ramp below."""

    kind: ClassVar[str] = "heat"
    cells: tuple[HeatCell, ...]
    cell: tuple[float, float]
    """Width and height of a cell."""
    rows: tuple[tuple[float, str, str], ...]
    """Middle, shortened label, full label."""
    columns: tuple[tuple[float, str, str], ...]
    is_turned: bool
    """Whether the columns' labels are vertical."""
    is_small: bool
    """Whether numbers are in small type."""
    left: float
    top: float
    bottom: float
    swatches: tuple[Tick, ...]
    """Position and class of the ramp's colours."""
    ends: tuple[Tick, ...]
    """Position and label of the ramp's ends, and of its middle if two-sided."""


def heat_panel(
    title: str, matrix: Matrix, rows: Sequence[str], columns: Sequence[str], ramp: Ramp
) -> HeatPanel:
    """Lay out a matrix.

    Args:
        title: Title of the panel.
        matrix: Its values.
        rows: Names from top to bottom; beyond 40, only the first are drawn.
        columns: Names from left to right, likewise.
        ramp: Colours, the same for panels to be compared.
    """
    rows, columns = rows[:MOST_ROWS], columns[:MOST_ROWS]
    found = {
        (row, column): value
        for row in rows
        for column in columns
        if (value := matrix.get((row, column))) is not None
    }
    digits = ramp.digits
    short_rows, short_columns = list(map(shortened, rows)), list(map(shortened, columns))
    left = 9 + LETTER * max(map(len, short_rows))
    width = min(64.0, round((WIDTH - 4 - left) / len(columns), 2))
    is_small = width < 34
    letters = max((len(f"{value:.{digits}f}") for value in found.values()), default=0)
    has_room = letters * (SMALL_DIGIT if is_small else DIGIT) < width
    has_numbers = has_room and max(len(rows), len(columns)) <= MOST_NUMBERS
    is_turned = max(map(len, short_columns)) * LETTER > width - 2
    top = 8 + LETTER * max(map(len, short_columns)) if is_turned else 18.0
    height = min(26.0, max(18.0, width)) if has_numbers else min(18.0, max(12.0, width))
    x, y = (Scale(0, 1, start, start + step) for start, step in ((left, width), (top, height)))
    bottom = y.at(len(rows))
    ramp_x = Scale(0, len(ramp.styles), left, left + min(160.0, WIDTH - left - 40))
    has_hints = not has_numbers and len(rows) * len(columns) <= MOST_HINTS
    cells = (
        HeatCell(
            x.at(columns.index(column)),
            y.at(rows.index(row)),
            ramp.style(value),
            f"{value:.{digits}f}" if has_numbers else "",
            f"{row}, {column}: {value:.{digits}f}" if has_hints else "",
        )
        for (row, column), value in found.items()
    )
    ends = [(ramp_x.start, ramp.low), (ramp_x.end, ramp.high)]
    if ramp.low < 0:
        ends.insert(1, ((ramp_x.start + ramp_x.end) / 2, 0.0))
    return HeatPanel(
        title,
        _in_words(found, len(rows), len(columns), digits),
        bottom + 34,
        tuple(cells),
        (width, height),
        tuple((y.at(place + 0.5), *pair) for place, pair in enumerate(zip(short_rows, rows, strict=True))),
        tuple(
            (x.at(place + 0.5), *pair) for place, pair in enumerate(zip(short_columns, columns, strict=True))
        ),
        is_turned,
        is_small,
        left,
        top,
        bottom,
        tuple((ramp_x.at(place), style) for place, style in enumerate(ramp.styles)),
        tuple((round(place, 1), f"{value:.{digits}f}") for place, value in ends),
    )


@dataclass(frozen=True)
class ScatterPanel(Panel):
    """Points by series, without axes: only relative positions have a meaning."""

    kind: ClassVar[str] = "scatter"
    points: tuple[tuple[Series, str], ...]
    """The points of a series as one path."""


def scatter_panel(
    title: str,
    points: Mapping[Series, Sequence[tuple[float, float]]],
    bounds: tuple[float, float, float, float],
) -> ScatterPanel:
    """Lay out points.

    Args:
        title: Title of the panel.
        points: (x, y) for each series; the series have marks.
        bounds: Least and greatest x, least and greatest y: the same for panels to be compared.
    """
    left, right, low, high = bounds
    x, y = Scale(left, right, 12, WIDTH - 12), Scale(low, high, SCATTER_HEIGHT - 12, 12)
    return ScatterPanel(
        title,
        ", ".join(f"{len(some)} points of {series.name}" for series, some in points.items()),
        SCATTER_HEIGHT,
        tuple(
            (series, "".join(f"M{x.at(a):g} {y.at(b):g}{MARKS[series.mark]}" for a, b in some))
            for series, some in points.items()
        ),
    )


def palette(names: Iterable[str]) -> dict[str, Series]:
    """A colour and a mark for each name, such as a domain."""
    marks = list(MARKS)
    return {
        name: Series(name, f"s-k{number % NUM_COLOURS}", mark=marks[number % len(marks)])
        for number, name in enumerate(dict.fromkeys(names))
    }


def _in_words(found: Mapping[tuple[str, str], float], num_rows: int, num_columns: int, digits: int) -> str:
    shape = f"{num_rows} rows, {num_columns} columns"
    if not found:
        return f"{shape}; no values"
    least, most = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    ends = (
        f"{word} {found[place]:.{digits}f} ({', '.join(place)})"
        for word, place in (("least", least), ("greatest", most))
    )
    return f"{shape}; {'; '.join(ends)}; mean {sum(found.values()) / len(found):.{digits}f}"
