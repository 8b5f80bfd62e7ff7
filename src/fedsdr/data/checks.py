"""Exact checks of a text against an example: what it loses, what it adds, how it is worded.

Goes in: an `Example` and a text, which is a rewriting of its response or a model's answer. Comes out:
counts and yes or no. No model is asked, so every number can be recomputed by hand; where a check is a
stand-in for entailment its docstring says how it errs. How a text is read stands in `data.truth`, a file for
each subject.
"""

import re
from dataclasses import replace
from itertools import pairwise

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
    "same_answer",
    "unsupported",
]

_LIST_ORDINAL = re.compile(r"^[ \t]*\d+[.)][ \t]", re.MULTILINE)


def lost(example: Example, text: str, code_timeout: float = 5.0) -> tuple[str, ...]:
    """Name the ground truth of the example that the text does not keep.

    Args:
        example: Only the kinds of ground truth that it carries are checked.
        text: A rewriting of its response, or an answer to its instruction.
        code_timeout: Seconds that the code in the text may run. Of several fenced blocks the first is run
            alone, then all together.

    Returns:
        Those of "label", "answer", "facts" and "tests" that are lost; empty if all are kept.
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
    """Whether the example's own response loses its label, answer or facts, as no rewriting should.

    Such an example is wrong in the data or beyond `lost`; its rewritings count as unfaithful, whatever
    they say. Tests are left out, since running them takes long.
    """
    return bool(lost(replace(example, tests=""), example.response))


def unsupported(example: Example, text: str) -> bool:
    """Whether the text states what context, instruction and response do not: an exact stand-in.

    True if it states a wrong label that the response does not name (that the instruction lists it is no
    excuse; that the text denies it is one), or a number that is nowhere in the example, in digits or
    words. It misses wrong statements without label or number, and takes a correct number that the response
    left out, such as a further step of a calculation, for unsupported. Numbers in words, and numbers that
    count the items of a list, are passed over; so are all numbers where the example carries tests, since a
    constant in a program is no statement. Never true of the response itself.
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
    return any(run_python(f"{program}\n\n{tests}\n", timeout) for program in programs(text))


def _unnumbered(text: str) -> str:
    """Take off the numbers that count the items of lists: 1, 2, 3 and so on at the starts of lines."""
    counted = [0, *map(int, re.findall(r"\d+", " ".join(_LIST_ORDINAL.findall(text))))]
    is_list = all(number in (1, before + 1) for before, number in pairwise(counted))
    return _LIST_ORDINAL.sub("", text) if is_list else text
