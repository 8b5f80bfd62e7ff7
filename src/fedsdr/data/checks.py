"""Exact checks of a text against an example: what it loses, what it adds, how it is worded.

Input: an `Example` and a text, either a rewriting of its response or a model's answer. Output: counts and
booleans. No model is involved, so every number can be recomputed by hand. Where a check approximates
entailment, its docstring says in which direction it errs. The rules for reading a text are in `data.truth`,
one file per subject.
"""

import re
from dataclasses import replace
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

from fedsdr.data.examples import Example
from fedsdr.data.sandbox import run_python
from fedsdr.data.truth.answers import final_answer
from fedsdr.data.truth.equality import gives_answer, same_answer
from fedsdr.data.truth.facts import says
from fedsdr.data.truth.labels import find_label, fold_label, named_labels
from fedsdr.data.truth.numbers import plain_values, word_values
from fedsdr.data.truth.programs import extract_code, programs
from fedsdr.data.truth.wording import (
    FILLERS,
    filler_rate,
    is_refusal,
    is_self_referring,
    num_words,
    redundancy,
)
from fedsdr.storage import content_hash

__all__ = [
    "FILLERS",
    "extract_code",
    "filler_rate",
    "final_answer",
    "find_label",
    "is_checkable",
    "is_inconsistent",
    "is_refusal",
    "is_self_referring",
    "lost",
    "num_words",
    "redundancy",
    "rules",
    "same_answer",
    "unsupported",
]

_LIST_ORDINAL = re.compile(r"^[ \t]*\d+[.)][ \t]", re.MULTILINE)


@cache
def rules() -> str:
    """Hash of the code that judges texts: saved verdicts of other rules are not reused."""
    here = Path(__file__)
    return content_hash([path.read_text("utf-8") for path in (here, *sorted(here.parent.glob("truth/*.py")))])


def lost(example: Example, text: str, code_timeout: float = 5.0) -> tuple[str, ...]:
    """Name the kinds of ground truth that the text does not preserve.

    Args:
        example: Only the kinds of ground truth that it carries are checked.
        text: A rewriting of its response, or an answer to its instruction.
        code_timeout: Time limit in seconds for the code in the text. Of several fenced blocks, the first
            runs alone, then all together.

    Returns:
        The subset of "label", "answer", "facts" and "tests" that is lost; empty if everything is preserved.
    """
    kinds = []
    if example.label and fold_label(find_label(text, example.choices)) != fold_label(example.label):
        kinds.append("label")
    if example.answer and not gives_answer(text, example.answer):
        kinds.append("answer")
    if example.facts and not all(says(_unnumbered(text), fact, example.response) for fact in example.facts):
        kinds.append("facts")
    if example.tests and not _passes(text, example.tests, code_timeout):
        kinds.append("tests")
    return tuple(kinds)


def is_checkable(example: Example) -> bool:
    """Whether the example carries ground truth for `lost`."""
    return bool(example.label or example.answer or example.facts or example.tests)


def is_inconsistent(example: Example) -> bool:
    """Whether the example's own response loses its label, answer or facts, which should never happen.

    Such an example is wrong in the data, or `lost` cannot read it; its rewritings count as unfaithful
    whatever they say. Tests are not run here, because they take long.
    """
    return bool(lost(replace(example, tests=""), example.response))


def unsupported(example: Example, text: str) -> bool:
    """Whether the text makes claims that context, instruction and response do not: an exact approximation.

    True if it states a wrong label that the response does not name (being listed in the instruction is no
    excuse; being denied in the text is), or a number that appears nowhere in the example, in digits or
    words. It misses wrong statements without a label or number, and it flags a correct number that the
    response left out, such as an extra step of a calculation. Numbers in words and list ordinals are
    ignored. Where the example carries tests, all numbers are ignored, since a constant in a program is not a
    claim. Never true of the response itself.
    """
    choices = example.choices if example.label else ()
    wrong = (
        named_labels(text, choices) - named_labels(example.response, choices) - {fold_label(example.label)}
    )
    if wrong or example.tests:
        return bool(wrong)
    earlier = (text for exchange in example.history for text in exchange)
    given = "\n".join((example.system, *earlier, example.context, example.instruction, example.response))
    return not plain_values(_unnumbered(text)) <= plain_values(given) | word_values(given)


def _passes(text: str, tests: str, timeout: float) -> bool:
    return any(program_passes(f"{program}\n\n{tests}\n", timeout) for program in programs(text))


@lru_cache(maxsize=4096)
def program_passes(source: str, timeout: float) -> bool:
    """Result of a program, which runs once: a response is checked again with each of its rewritings."""
    return run_python(source, timeout)


def _unnumbered(text: str) -> str:
    """Remove the ordinals of list items: 1, 2, 3 and so on at the starts of lines."""
    counted = [0, *map(int, re.findall(r"\d+", " ".join(_LIST_ORDINAL.findall(text))))]
    is_list = all(number in (1, before + 1) for before, number in pairwise(counted))
    return _LIST_ORDINAL.sub("", text) if is_list else text
