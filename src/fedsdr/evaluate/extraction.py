"""What a free answer gives as its result, read strictly and read flexibly.

Models that do not keep to a form are rated low by strict reading and high by flexible reading, so both
stand side by side. Both compare by `data.checks.same_answer`: numbers by value, text without regard to case,
white space, commas in thousands and a full stop at the end.
"""

import re
from collections.abc import Sequence

from fedsdr.data.checks import extract_code, final_answer, find_label, same_answer

_STATED = re.compile(r"answer is[ \t:*]*([^\n]*)", re.IGNORECASE)


def strict_answer(text: str, accepted: Sequence[str]) -> str:
    """What follows the last "answer is", to the end of its line; without these words, the whole text.

    Where a number is accepted and the line gives one (`data.checks.final_answer`), the number: "The answer is
    $18 a day." gives 18, "The answer is 2 + 3 = 5." gives 5.
    """
    stated = _STATED.findall(text)
    if not stated:
        return text.strip()
    number = final_answer(text)
    return number if _is_number(number) and any(map(_is_number, accepted)) else stated[-1].strip(" *")


def flexible_answer(text: str, accepted: Sequence[str], choices: Sequence[str] = ()) -> str:
    """The result of the text as kindly as may be; "" where there is none.

    That is, in this order: what strict reading gives, if it is accepted; of a question with choices the one
    choice that the text names; an accepted answer in words that the text holds as whole words; the last
    number of the text. So whatever is right strictly is right flexibly. It errs upwards where a long text
    holds an accepted phrase by chance.
    """
    strict = strict_answer(text, accepted)
    if is_accepted(strict, accepted):
        return strict
    if choices:
        return find_label(text, tuple(choices))
    for phrase in accepted:
        if not _is_number(phrase) and find_label(text, (phrase,)):
            return phrase
    # Without the words "answer is" that is the last number.
    return final_answer(_STATED.sub(r"\1", text))


def is_accepted(given: str, accepted: Sequence[str]) -> bool:
    """Whether the result is one of the accepted answers."""
    return any(same_answer(given, answer) for answer in accepted)


def program(answer: str, prompt: str, entry_point: str, tests: str) -> str:
    """Make the program that must run to its end: the code of an answer, then the tests.

    Where a prompt begins a function, it stands first, for its imports and helpers: its function has a
    docstring for a body, and is replaced if the answer defines it anew; else the answer continues it. Of what
    follows the new definition, all from the first comment, print, assert or if at the margin on is left out:
    examples of use, often cut off in the middle, are no part of the function.

    Args:
        answer: The model's answer; of several fenced blocks the first counts.
        prompt: Beginning of the program that is to be completed; "" where there is none.
        entry_point: The function to be completed; "" where there is none.
        tests: Assertions.
    """
    code = extract_code(answer)
    if not entry_point:
        return f"{code}\n\n{tests}\n"
    if whole := re.search(rf"^def {re.escape(entry_point)}\b", code, re.MULTILINE):
        body = code[: whole.end()] + re.split(r"\n(?=#|print|assert|if)", code[whole.end() :])[0]
    else:
        # A body whose first line lost its indentation when the answer was stripped.
        body = "    " + code.strip()
    return f"{prompt.rstrip()}\n{body}\n\n{tests}\n"


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-?[\d.,]*\d", text))
