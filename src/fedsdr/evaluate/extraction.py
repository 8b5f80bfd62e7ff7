"""The result of a free-form answer, read strictly and flexibly.

Strict reading underrates models that ignore the answer format, flexible reading overrates them, so both are
reported. Both compare by `data.checks.same_answer`: numbers by value, text ignoring case, white space,
thousands separators and a final full stop.
"""

import re
from collections.abc import Sequence

from fedsdr.data.checks import extract_code, final_answer, find_label, same_answer

_STATED = re.compile(r"answer is[ \t:*]*([^\n]*)", re.IGNORECASE)


def strict_answer(text: str, accepted: Sequence[str]) -> str:
    """The text after the last "answer is", to the end of its line; without these words, the whole text.

    If a number is accepted and the line gives one (`data.checks.final_answer`), that number: "The answer is
    $18 a day." gives 18, "The answer is 2 + 3 = 5." gives 5.
    """
    stated = _STATED.findall(text)
    if not stated:
        return text.strip()
    number = final_answer(text)
    return number if _is_number(number) and any(map(_is_number, accepted)) else stated[-1].strip(" *")


def flexible_answer(text: str, accepted: Sequence[str], choices: Sequence[str] = ()) -> str:
    """The result of the text in the most lenient reading; "" if there is none.

    In this order: the strict result, if it is accepted; for a question with choices, the single choice that
    the text names; an accepted answer that occurs in the text as whole words; the last number of the text. So
    every strictly correct answer is also flexibly correct. It errs upwards if a long text contains an
    accepted phrase by chance.
    """
    strict = strict_answer(text, accepted)
    if is_accepted(strict, accepted):
        return strict
    if choices:
        return find_label(text, tuple(choices))
    for phrase in accepted:
        if not _is_number(phrase) and find_label(text, (phrase,)):
            return phrase
    # Without the words "answer is" this is the last number.
    return final_answer(_STATED.sub(r"\1", text))


def is_accepted(given: str, accepted: Sequence[str]) -> bool:
    """Whether the result is one of the accepted answers."""
    return any(same_answer(given, answer) for answer in accepted)


def program(answer: str, prompt: str, entry_point: str, tests: str) -> str:
    """Build the program that must run to its end: the code of an answer, then the tests.

    If a prompt begins a function, it comes first, for its imports and helpers. Its function has a docstring
    as its body, and is replaced if the answer redefines it; otherwise the answer continues it. After the new
    definition, everything from the first comment, print, assert or if at the margin is dropped: usage
    examples, often truncated, are not part of the function.

    Args:
        answer: The model's answer; of several fenced blocks the first counts.
        prompt: Beginning of the program to complete; "" if there is none.
        entry_point: The function to complete; "" if there is none.
        tests: Assertions.
    """
    code = extract_code(answer)
    if not entry_point:
        return f"{code}\n\n{tests}\n"
    if whole := re.search(rf"^def {re.escape(entry_point)}\b", code, re.MULTILINE):
        body = code[: whole.end()] + re.split(r"\n(?=#|print|assert|if)", code[whole.end() :])[0]
    else:
        # The first line of the body lost its indentation when the answer was stripped.
        body = "    " + code.strip()
    return f"{prompt.rstrip()}\n{body}\n\n{tests}\n"


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-?[\d.,]*\d", text))
