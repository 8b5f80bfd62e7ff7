"""The instruction example, the unit that flows through every package."""

from dataclasses import asdict, dataclass
from typing import Any

LATER = ("history", "distilled")
"""Fields added after the first version of the record."""


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction with its true response: (c, x, y) in the paper.

    The fields from `label` to `tests` are optional ground truth. With them, faithfulness of a rewriting and
    correctness of an answer are exact comparisons (`data.checks`).
    """

    instruction: str
    """The task given to the model (x)."""
    response: str
    """The true response (y)."""
    domain: str
    """The subject area of the example, such as "finance"."""
    context: str = ""
    """An input passage that the instruction refers to (c); shown after the instruction."""
    system: str = ""
    """A system prompt; empty: the chat template's default."""
    label: str = ""
    """Class label, one of `choices`."""
    choices: tuple[str, ...] = ()
    """All labels of the task."""
    answer: str = ""
    """Final answer, usually a number, as it must appear in the response."""
    facts: tuple[str, ...] = ()
    """Phrases that every faithful response contains (ignoring case and white space)."""
    tests: str = ""
    """Python assertions that the code in the response must pass."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier exchanges of the conversation as (question, answer) pairs; shown before the instruction."""
    distilled: str = ""
    """A rewriting supplied with the data (y~). If empty, the model writes one where a method needs it."""


def as_record(example: Example) -> dict[str, Any]:
    """The example as a JSON object; an empty history or rewriting is omitted, so that hashes stay stable."""
    return {key: value for key, value in asdict(example).items() if value or key not in LATER}
