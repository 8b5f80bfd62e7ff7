"""What the tabs of a page hold. `blocks.html` shows them in the given order."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedsdr.report.figures import Figure
from fedsdr.report.sheets import Sheet
from fedsdr.storage import Event


@dataclass(frozen=True)
class Text:
    """A paragraph; text between two ` is shown as code."""

    text: str
    style: str = ""
    """CSS class: "note" for small print."""


@dataclass(frozen=True)
class Titled:
    """A heading inside a tab."""

    heading: str


@dataclass(frozen=True)
class Table:
    """A sheet, and the name of its CSV file."""

    key: str
    sheet: Sheet


@dataclass(frozen=True)
class Folded:
    """Long text that is shown when asked for."""

    title: str
    long: str


@dataclass(frozen=True)
class Examples:
    """Texts next to the true responses that they replace."""

    caption: str
    examples: Sequence[Event]
    """With domain, of, why, instruction, input, response and text."""


@dataclass(frozen=True)
class Drawing:
    """A finished picture."""

    svg: str


Block = Figure | Drawing | Table | Text | Titled | Folded | Examples


@dataclass(frozen=True)
class Tab:
    """A tab of a page."""

    key: str
    """Names its ids."""
    name: str
    """What the tab is called."""
    title: str
    """Its heading."""
    blocks: Sequence[Block]
