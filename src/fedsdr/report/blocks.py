"""The contents of a page's tabs. `blocks.html` renders them in the given order."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedsdr.report.figures import Figure
from fedsdr.report.sheets import Sheet


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
    """A long table, folded by default."""

    key: str
    title: str
    sheet: Sheet


@dataclass(frozen=True)
class Words:
    """A text, and whether it is right; None if that is not judged."""

    of: str
    text: str
    right: bool | None = None


@dataclass(frozen=True)
class ShownExample:
    """A prompt, and texts that answer it."""

    domain: str
    instruction: str
    input: str
    texts: Sequence[Words]
    why: str = ""
    """Remark on the example."""


@dataclass(frozen=True)
class Examples:
    """Prompts, and texts that answer them side by side."""

    caption: str
    examples: Sequence[ShownExample]


@dataclass(frozen=True)
class Links:
    """Links to other pages."""

    links: Sequence[tuple[str, str]]
    """Name and relative path of each."""


@dataclass(frozen=True)
class Drawing:
    """A finished picture."""

    svg: str


Block = Figure | Drawing | Links | Table | Text | Titled | Folded | Examples


@dataclass(frozen=True)
class Tab:
    """A tab of a page."""

    key: str
    """Names its ids."""
    name: str
    """Title of the tab."""
    title: str
    """Its heading."""
    blocks: Sequence[Block]
