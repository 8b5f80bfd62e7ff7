"""The instruction example, the unit that flows through every package."""

from dataclasses import asdict, dataclass
from typing import Any

LATER = ("history", "distilled")
"""Fields that examples did not have from the beginning."""


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction with its true response: (c, x, y) in the paper.

    The fields from `label` to `tests` are optional ground truth. They make faithfulness of a rewriting and
    correctness of an answer a matter of exact comparison (`data.checks`).
    """

    instruction: str
    """What is asked of the model (x)."""
    response: str
    """The true response (y)."""
    domain: str
    """The field that the example belongs to, such as "finance"."""
    context: str = ""
    """An input passage that the instruction speaks of (c); shown after the instruction."""
    system: str = ""
    """A system prompt; empty leaves the chat template's own default."""
    label: str = ""
    """Class label, one of `choices`."""
    choices: tuple[str, ...] = ()
    """Every label that the task knows."""
    answer: str = ""
    """Final answer, usually a number, as it must appear in the response."""
    facts: tuple[str, ...] = ()
    """Phrases that every faithful response contains (case and white space aside)."""
    tests: str = ""
    """Python assertions that the code in the response must pass."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier exchanges of the conversation, each what was asked and what was answered; shown before the
    instruction."""
    distilled: str = ""
    """A rewriting that comes with the data (y~); empty: the model writes one where a method needs it."""


def as_record(example: Example) -> dict[str, Any]:
    """An example as JSON holds it, without an empty history or rewriting: examples keep their hashes."""
    return {key: value for key, value in asdict(example).items() if value or key not in LATER}
