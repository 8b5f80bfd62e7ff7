"""From records to the one behind a claim, and to the verdict on the claim."""

from collections.abc import Sequence
from typing import Literal

from fedsdr.storage import Event

Word = Literal["supported", "refuted", "undecided"]


def verdict_of(low: float | None, high: float | None, better: int) -> Word:
    """Verdict of a difference's 95 % interval on the claim that its sign is `better`."""
    if low is None or high is None or low <= 0 <= high:
        return "undecided"
    return "supported" if low * better > 0 else "refuted"


def only(records: Sequence[Event], wanted: Event) -> Event:
    """The record with these values."""
    return next(record for record in records if record.items() >= wanted.items())


def over_all_domains(records: Sequence[Event]) -> list[Event]:
    """Records over all domains: "all", or the only domain."""
    several = {record["of"] for record in records if record["domain"] == "all"}
    return [r for r in records if r["domain"] == "all" or r["of"] not in several]


def claim(text: str, record: Event, better: int, what: str) -> Event:
    """A claim, its verdict, and the numbers behind it.

    Args:
        text: The claim.
        record: Has value, low and high of the difference.
        better: Sign of a difference that supports the claim.
        what: Name of the difference.
    """
    low, high = record["low"], record["high"]
    value = "unknown" if record["value"] is None else f"{record['value']:+.3f}"
    interval = "" if low is None else f", 95 % interval {low:+.3f} to {high:+.3f}"
    return {
        "claim": text,
        "verdict": verdict_of(low, high, better),
        "text": f"{what} {value}{interval}",
    }
