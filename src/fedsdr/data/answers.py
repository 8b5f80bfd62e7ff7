r"""The final answer of a text: what stands in \boxed{}, after "the answer is", or else the last number.

Goes in: a text, or two answers to compare. Comes out: the answer as written, or yes or no. Numbers are
compared by value, words as text; a number that only begins a longer expression is not the answer.
"""

import re

from fedsdr.data.labels import find_label, same_label
from fedsdr.data.negation import denied
from fedsdr.data.numbers import (
    NUMBER_WORDS,
    PLAIN_NUMBER,
    QUANTITY,
    in_digits,
    quantities,
    same_value,
    unlatex,
    value,
)
from fedsdr.data.text import AFTER, ANSWER_IS, BEFORE, fold, plain, unmarked

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_STATED = re.compile(rf"{ANSWER_IS}(?!\s*\?)", re.IGNORECASE)
_STATED_BEFORE = re.compile(
    rf"({QUANTITY.pattern})(?:\s\w+)?\s(?:is|was|as|isn't)(?: not)? (?:the|my|our) (?:final |correct |right )*answer\b",
    re.IGNORECASE,
)
_OPERATION = (
    rf"(?:\s?(?:[-+*/×÷^]|\bx\b|\btimes\b|\bplus\b|\bminus\b)\s?(?:sqrt)?[(\s]*(?:{PLAIN_NUMBER}|\d))"
)
_NO_ANSWER = re.compile(  # what may follow a number that is an answer does not begin like this
    rf"\.\d|\s?[-+*/×÷^=:](?=\s?[$£€(]?[\d(])|\s?\.?\.\.\d|:\d|\s+(?:x|times|plus|minus|to|or|and|through)\s+(?:[a-z] = )?[$£€]?[-\d(]|\s+or\s+(?:{NUMBER_WORDS.pattern})"
    r"|,\s?-?\d|\s+(?:\w+\s+)?(?:more|less|fewer|greater|larger|smaller|higher|lower|other)\s+than\b|\s+or\s+(?:more|less|fewer|so|maybe|perhaps)\b|\s?(?:sqrt|pi\b|root)"
    r"|\s?(?!(?:[kcdm]?m|ft|in)\^[23])[a-z]\s?(?:[-+=^*]|/\d)|\s?[a-z](?!\w)(?=\s?[-+])"
    r"|\s+(?:dollars?|euros?|pounds?|hours?|hrs?|h|minutes?|mins?|feet|foot|ft|years?|weeks?|days?|months?|kg|km|m|meters?|metres?)\b,?(?: and)?\s+\d+\s*(?:cents?|minutes?|mins?|seconds?|secs?|inches?|in|ounces?|oz|months?|days?|weeks?|hours?|grams?|g|m|cm|pence)\b",
    re.IGNORECASE,
)
_MONEY = re.compile(r"(\d+)\s+(?:dollars?|euros?|pounds?) and (\d\d?)\s+(?:cents?|pence)\b", re.IGNORECASE)
# Near a number these say that it is not the answer, or not yet: "not 5", "5 ** 2", "less than 5".
_NO_STATEMENT = re.compile(
    r"[-+*/×=\\^<>](?!\w)|[<>≤≥]|\\|\b(?:not|never|no|than|between|over|under|times|minus|plus|x|or|either|neither|at least|at most|up to|isn't|wrong|incorrect)\b|n't",
    re.IGNORECASE,
)
_OPEN = r"^[\s:*$£€(\[{`\"'=]*(?:(?:clearly|therefore|thus|simply|indeed|approximately|about|roughly|exactly|just|actually|equal to|still|only|indeed|x =|y =|n =)\s+)*[\s*$£€(`\"']*"
_REASON = re.compile(
    r",?\s(?:since|because|as|given that|after|for|considering)\s.*$", re.IGNORECASE | re.DOTALL
)
_CONCLUDES = re.compile(
    r"\b(?:so|therefore|thus|hence|in total|altogether|consequently|finally|in all|overall)\b|所以|因此|一共|よって|따라서",
    re.IGNORECASE,
)
_ALONE = r"\b(?:only|just|exactly|leaves|leaving|leave)\s+{word}\b|\b{word}\s+(?:\w+\s+)?(?:remains?|is left|are left|left|in all|in total|altogether)\b"
_BOLD = re.compile(
    rf"\*\*\s*(?:[a-zA-Z]\s*=\s*)?([$£€]?{QUANTITY.pattern})\s*(?:[a-zA-Z°%²]+\s*){{0,3}}[.!]?\s*\*\*"
)
_PAIRS = (("yes", "no"), ("true", "false"))
_SENTENCE = re.compile(r"(?<=[.!?。])\s+(?=\S)|\n+|(?<=。)")


# What a root or pi makes of a number.
_EXPRESSION = re.compile(
    r"-?(?:[\d./()]+\s?\*?\s?)?(?:(?:sqrt|root)\s?\([^()]*\)|\bpi\b|(?<=\d)pi\b)(?:\s?[*/]\s?[\d.]+|\s?\*?\s?pi\b|/\([^()]*\))?"
)
# Not results, but remarks on the working.
_REMARK = re.compile(r"\W*(?:note\b|i (?:used|took|needed|checked|did|hope)\b|this (?:took|needs)\b|step \d)", re.IGNORECASE)


_ALTERNATIVE = re.compile(r"\s*(?:or|and/or)\s*(?:[a-zA-Z]\s*=\s*)?|\s+\w+\s+or\s+")


def final_answer(text: str) -> str:
    r"""Return what the text gives as its answer.

    That is the inside of the last \boxed{}; else what follows the last "answer is" (or "Answer:", "####",
    and the like in other languages): the number with all that belongs to it, if one follows directly; the last
    result, if working with "=" follows; else the rest of the line. Without these words it is the last number of
    the last sentence that concludes ("so", "in total") or else of the text, reasons ("since 8 are taken off")
    left out; and "" if there is none. LaTeX is taken off.
    """
    return _find(text)[0]


def same_answer(a: str, b: str) -> bool:
    """Compare two final answers: by value if both are numbers or expressions, else as text without case.

    Commas, currency and percent signs, trailing zeros and a full stop at the end do not matter. Several values
    ("2 or 3") are the same in any order, those in brackets in theirs. Text is the same only if it is not empty.
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


def gives(text: str, answer: str) -> bool:
    """Whether this is the answer that the text gives, be it in plain words: "that she has 12 pens"."""
    for pair in _PAIRS:
        if answer.casefold() in pair:
            return same_label(find_label(text, pair), answer)
    if re.fullmatch(r"\(?[A-J]\)?", answer):
        return same_label(find_label(text, tuple("ABCDEFGHIJ")), answer.strip("()"))
    given, stated = _find(text)
    if same_answer(given, answer):
        return True
    wanted = _amount(answer)
    if wanted is not None:
        if value(given) is not None:
            return same_answer(given, wanted)
        given = given if quantities(given) else in_digits(given)
        found = quantities(given)
        return (
            len(found) == 1
            and same_answer(found[0], wanted)
            and _units_agree(given, answer)
            and not _NO_STATEMENT.search(given)
        )
    if value(answer) is not None or len(_parts(fold(unlatex(answer)))) > 1:
        return False
    return _names(given if stated else text, answer)


def _find(text: str) -> tuple[str, bool]:
    """Return the answer, and whether it was stated as such."""
    if boxes := list(_BOX.finditer(text)):
        return _simple(unlatex(_braced(text, boxes[-1].end()))).strip(" .$"), True
    stripped = unlatex(text)
    stripped = _MONEY.sub(lambda found: f"{found[1]}.{found[2]:0>2} dollars", stripped)
    stated = [one for one in _STATED.finditer(stripped) if not _is_question(stripped, one.end())]
    if reverse := list(_STATED_BEFORE.finditer(stripped)):
        last = reverse[-1]
        if not stated or last.start() > stated[-1].start():
            is_denied = re.search(r"\bnot\b|n't", last[0]) or denied(
                stripped.casefold(), last.start(1), last.end(1)
            )
            return ("" if is_denied else last[1].strip()), True
    if stated:
        rest = stripped[stated[-1].end() :]
        lines = [line for line in rest.split("\n") if re.search(r"\w", line)]
        return _simple(lines[0] if lines else ""), True
    return _last_number(stripped, text), False


def _is_question(text: str, end: int) -> bool:
    return bool(re.match(r"[^.\n]{0,60}\?", text[end:]))


def _braced(text: str, start: int) -> str:
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + 1 : place]
    return text[start + 1 :]


def _simple(words: str) -> str:
    """Read the words of a statement: a number, a result, or the words themselves."""
    words = words.replace("n't ", " not ", 1) if words.startswith("n't ") else words
    words = re.sub(
        r"^(\W*)not [^,.;]{1,30}?[,;]?\s+(?:but|rather|it's|it is)\s+",
        r"\1",
        words.strip(),
        flags=re.IGNORECASE,
    )
    inside = re.sub(_OPEN, "", words)
    results = list(re.finditer(r"=[\s$£€]*", words))
    several = re.search(rf"\b(?:or|and)\s+(?:[a-z]\s*=\s*)?[$£€(]?(?:{PLAIN_NUMBER})|\bor\b", words)
    if results and not several:
        after = words[results[-1].end() :]
        if number := QUANTITY.match(after):
            return _closed(after) if _NO_ANSWER.match(after, number.end()) else number[0].strip()
        if value(_closed(after)) is not None:
            return _closed(after)
    number = QUANTITY.match(inside)
    if (
        number
        and not _NO_ANSWER.match(inside, number.end())
        and not re.match(r"[(\[{]\s*-?\d[^)\]}]*,", words)
    ):
        return number[0].strip()
    return _closed(words)


def _closed(words: str) -> str:
    """Take marks off the ends, and what follows the first sentence; brackets that belong together stay."""
    words = re.split(r"(?<=[^\d\s])[.!](?=\s|$)|(?<=\d)[.!](?=\s|$)", words.strip())[0]
    words = re.sub(r"^[\s:*`\"'$]+|[\s.!*`\"'$]+$", "", words)
    for opening, closing in ("()", "[]", "{}"):
        if words.count(closing) > words.count(opening):
            words = words.rstrip(closing)
    return words.strip(" .!")


def _last_number(text: str, marked: str) -> str:
    if bold := list(_BOLD.finditer(plain(marked))):
        return bold[-1][1].strip()
    sentences = [one for one in _SENTENCE.split(unmarked(text)) if one and not one.rstrip().endswith("?")]
    holding = [one for one in sentences if QUANTITY.search(one) or _alone(one)]
    holding = [one for one in holding if not _REMARK.match(one)] or holding
    if not holding:
        words = [
            found[0]
            for one in sentences
            for found in NUMBER_WORDS.finditer(one)
            if found[0].casefold() != "one"
        ]
        return words[-1] if words else ""
    concluding = [one for one in holding if _CONCLUDES.search(one)]
    sentence = concluding[-1] if concluding and "=" not in holding[-1] else holding[-1]
    if word := _alone(sentence):
        return word
    main = _REASON.sub("", sentence)
    sentence = main if QUANTITY.search(main) else sentence
    if expressions := list(_EXPRESSION.finditer(sentence)):
        last = expressions[-1]
        if not QUANTITY.search(sentence, last.end()):
            return last[0].strip()
    found = list(QUANTITY.finditer(sentence))
    last = found[-1]
    if len(found) > 1:
        between = sentence[found[-2].end() : last.start()]
        is_range = between.strip() == "and" and re.search(r"\bbetween\s*$", sentence[: found[-2].start()])
        if is_range or _ALTERNATIVE.fullmatch(between):
            return sentence[found[-2].start() : last.end()].strip()
    if (beyond := _NO_ANSWER.match(sentence, last.end())) and re.search(r"\w", beyond[0]):
        return sentence[last.start() :].strip(" .")
    return last[0].strip()


def _alone(sentence: str) -> str:
    """Return a number in words that is stated as what remains: "so that only one remains"."""
    for found in NUMBER_WORDS.finditer(sentence):
        for around in re.finditer(_ALONE.format(word=re.escape(found[0])), sentence, re.IGNORECASE):
            if around.start() <= found.start() < around.end() and not QUANTITY.search(sentence, found.end()):
                return found[0]
    return ""


def _amount(answer: str) -> str | None:
    """Return the number of an answer that is one number, perhaps with a unit; else None."""
    text = unlatex(answer).strip(" .")
    if value(text) is not None:
        return text
    found = QUANTITY.match(text)
    return found[0] if found and re.fullmatch(r"\s?°?[a-zA-Z°%^²³/ ]{1,20}\d?", text[found.end() :]) else None


_UNIT_NAMES = {
    "kilometer": "km", "kilometre": "km", "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm", "millimeter": "mm",
    "millimetre": "mm", "kilogram": "kg", "gram": "g", "milligram": "mg", "hour": "h", "hr": "h", "minute": "min", "second": "s",
    "sec": "s", "liter": "l", "litre": "l", "percent": "%", "cent": "c", "mile": "mile", "foot": "ft", "feet": "ft", "inch": "inch",
    "day": "day", "week": "week", "month": "month", "year": "year", "dollar": "$", "euro": "€",
}  # fmt: skip


def _unit(text: str) -> str:
    """The known unit that follows the first number, or ""."""
    found = QUANTITY.search(text)
    word = re.match(r"\s?([a-zA-Z]+)", text[found.end() :]) if found else None
    name = word[1].casefold() if word else ""
    name = _UNIT_NAMES.get(name, _UNIT_NAMES.get(name.removesuffix("s"), name))
    return name if name in _UNIT_NAMES.values() else ""


def _units_agree(given: str, answer: str) -> bool:
    units = {_unit(unlatex(given)), _unit(unlatex(answer))} - {""}
    return len(units) < 2


def _parts(text: str) -> list[str]:
    """The values of a list, a set, a pair or an interval, without names such as x =."""
    inside = text[1:-1] if re.fullmatch(r"[(\[{].*,.*[)\]}]", text) else text
    parts = re.split(r",\s*(?:and |or )?|;\s*|\s+(?:and|or)\s+", inside)
    return [re.sub(r"^[a-z]\s*=\s*", "", part.strip()) for part in parts]


def _names(text: str, answer: str) -> bool:
    """Whether the text says these words, and does not deny them or leave them open."""
    text = fold(unmarked(unlatex(text)))
    words = re.escape(fold(unlatex(answer)).strip(" ."))
    for found in re.finditer(
        f"{BEFORE if words[:1].isalnum() else ''}{words}{AFTER if words[-1:].isalnum() else ''}", text
    ):
        near = text[max(0, found.start() - 20) : found.start()], text[found.end() : found.end() + 6]
        is_open = re.search(r"\b(?:either|or|between)\s(?:\w+\s)?$", near[0]) or re.match(r",? or\b", near[1])
        if not denied(text, found.start(), found.end()) and not is_open:
            return True
    return False
