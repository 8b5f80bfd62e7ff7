"""Whether two answers are the same: numbers by value, units if both are known, words as text.

Input: two answers, or a text and the true answer. Output: a boolean. A number that only begins a longer
expression is not the answer.
"""

import re

from fedsdr.data.truth.answers import Found, find_answer
from fedsdr.data.truth.labels import find_label
from fedsdr.data.truth.negation import asked, denied
from fedsdr.data.truth.numbers import QUANTITY, in_digits, quantities, same_value, unlatex, value
from fedsdr.data.truth.text import AFTER, BEFORE, fold, unmarked, words

# Near a number these mean that it is not the answer, or not yet: "not 5", "5 ** 2", "less than 5".
_NO_STATEMENT = re.compile(
    r"[-+*/×=\\^<>](?!\w)|[<>≤≥]|\\|n't|"
    + words(
        "not, never, no, than, between, over, under, times, minus, plus, x, or, either, neither, at least"
    )
    + "|"
    + words(
        "at most, up to, below, above, wrong, incorrect, twice, half, double, triple, squared, cubed,"
        "divided by, multiplied by, (?:multiple|factor|divisor|power|root) of"
    ),
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"[\[(][^\[\]()\n]*,[^\[\]()\n]*[\])]")  # a pair, a vector or an interval
_PAIRS = (("yes", "no"), ("true", "false"))
_UNIT_NAMES = {
    "kilometer": "km", "kilometre": "km", "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm",
    "millimeter": "mm", "millimetre": "mm", "kilogram": "kg", "gram": "g", "milligram": "mg", "hour": "h",
    "hr": "h", "minute": "min", "second": "s", "sec": "s", "liter": "l", "litre": "l", "percent": "%",
    "cent": "c", "mile": "mile", "foot": "ft", "feet": "ft", "inch": "inch", "day": "day", "week": "week",
    "month": "month", "year": "year", "dollar": "$", "euro": "€",
}  # fmt: skip


def same_answer(a: str, b: str) -> bool:
    """Compare two final answers: by value if both are numbers or expressions, else as case-insensitive text.

    Commas, currency and percent signs, trailing zeros and a final full stop do not matter. Several values
    ("2 or 3") are equal in any order; in brackets their order counts. Empty text is never equal.
    """
    left, right = (fold(unlatex(one)).strip(" .") for one in (a, b))
    if left == right or not left or not right:
        return left == right != ""
    one, other = value(a), value(b)
    if one is not None and other is not None:
        return same_value(one, other)
    parts, others = _parts(left), _parts(right)
    if len(parts) < 2 and len(others) < 2 and parts == [left] and others == [right]:
        return left.replace(" ", "") == right.replace(" ", "")
    if len(parts) != len(others):
        return False
    if left[0] in "([" and right[0] in "([" and len(parts) > 1:
        return left[0] == right[0] and left[-1] == right[-1] and all(map(same_answer, parts, others))
    for part in parts:
        match = next((place for place, it in enumerate(others) if same_answer(part, it)), None)
        if match is None:
            return False
        del others[match]
    return True


def gives_answer(text: str, answer: str) -> bool:
    """Whether the text gives this answer, possibly in plain words: "that she has 12 pens"."""
    for pair in _PAIRS:
        if answer.casefold() in pair:
            return find_label(text, pair) == answer.casefold()
    if re.fullmatch(r"\(?[A-J]\)?", answer):
        return find_label(text, tuple("ABCDEFGHIJ")) == answer.strip("()")
    if _BRACKETED.fullmatch(unlatex(answer).strip()):
        brackets = _BRACKETED.findall(unlatex(text))
        return bool(brackets) and same_answer(brackets[-1], answer)
    found = find_answer(text)
    wanted = _amount(answer)
    if wanted is not None and not _units_agree(found, answer):
        return False
    if same_answer(found.answer, answer):
        return True
    if wanted is not None:
        if value(found.answer) is not None:
            return same_answer(found.answer, wanted)
        given = found.answer if quantities(found.answer) else in_digits(found.answer)
        inside = quantities(given)
        return len(inside) == 1 and same_answer(inside[0], wanted) and not _NO_STATEMENT.search(given)
    if value(answer) is not None or len(_parts(fold(unlatex(answer)))) > 1:
        return False
    return _names(found.after if found.stated else text, answer)


def _amount(answer: str) -> str | None:
    """Return the number of an answer that is a single number with an optional unit, else None."""
    text = unlatex(answer).strip(" .")
    if value(text) is not None:
        return text
    found = QUANTITY.match(text)
    return found[0] if found and re.fullmatch(r"\s?°?[a-zA-Z°%^²³/ ]{1,20}\d?", text[found.end() :]) else None


def _units_agree(found: Found, answer: str) -> bool:
    """Whether the known units of both agree, if both have one."""
    text = unlatex(answer)
    number = QUANTITY.search(text)
    units = {_unit(found.answer, found.after), _unit(text, text[number.end() :] if number else "")}
    return len(units - {""}) < 2


def _unit(number: str, after: str) -> str:
    word = re.match(r"[\s-]?([a-zA-Z%€$]+)", after)
    name = word[1].casefold() if word else ""
    name = _UNIT_NAMES.get(name, _UNIT_NAMES.get(name.removesuffix("s"), name))
    sign = re.search("[$€%]", number)
    return name if name in _UNIT_NAMES.values() else sign[0] if sign else ""


def _parts(text: str) -> list[str]:
    """The values of a list, a set, a pair or an interval, without names such as x =."""
    inside = text[1:-1] if re.fullmatch(r"[(\[{].*,.*[)\]}]", text) else text
    parts = re.split(r",\s*(?:and |or )?|;\s*|\s+(?:and|or)\s+", inside)
    return [re.sub(r"^[a-z]\s*=\s*", "", part.strip()) for part in parts]


def _names(text: str, answer: str) -> bool:
    """Whether the text states these words without denying them or leaving them open."""
    text = fold(unlatex(text) if re.match(r"\W", answer) else unmarked(unlatex(text)))
    phrase = re.escape(fold(unlatex(answer)).strip(" ."))
    begin, end = BEFORE if phrase[:1].isalnum() else "", AFTER if phrase[-1:].isalnum() else ""
    for found in re.finditer(f"{begin}{phrase}{end}", text):
        near = text[max(0, found.start() - 20) : found.start()], text[found.end() : found.end() + 6]
        is_open = re.search(r"\b(?:either|or|between)\s(?:\w+\s)?$", near[0]) or re.match(r",? or\b", near[1])
        if not (is_open or asked(text, found.end()) or denied(text, *found.span())):
            return True
    return False
