"""What the tabs of a page hold. `parts.html` shows them in the order in which they stand here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsdr.report.figures import Figure
from fedsdr.report.sheets import Sheet
from fedsdr.storage import Event


@dataclass(frozen=True)
class Text:
    """A paragraph; what stands between two ` is shown as code."""

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
    """Texts beside the true responses they stand for."""

    caption: str
    examples: Sequence[Event]
    """With domain, of, why, instruction, input, response and text."""


Block = Figure | Table | Text | Titled | Folded | Examples


@dataclass(frozen=True)
class Part:
    """A tab."""

    key: str
    """Names its ids."""
    name: str
    """What the tab is called."""
    title: str
    """Its heading."""
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    claim: str
    verdict: str
    """supported, refuted, undecided or not measured."""
    text: str
    """The evidence in words, with its numbers."""

    @classmethod
    def of(cls, record: Mapping[str, str]) -> Verdict:
        """Read the record of a verdict."""
        return cls(record["claim"], record["verdict"], record["text"])
