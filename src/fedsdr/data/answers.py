r"""The final answer of a text: what stands in \boxed{}, after "the answer is", or else the last number.

Goes in: a text, or two answers to compare. Comes out: the answer as written, or yes or no. Numbers are
compared by value, words as text; a number that only begins a longer expression is not the answer.
"""

import re
from typing import NamedTuple

from fedsdr.data.labels import find_label
from fedsdr.data.negation import denied, denied_before
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
from fedsdr.data.text import AFTER, ANSWER_IS, BEFORE, fold, plain, unmarked, words

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_STATED = re.compile(rf"(?:{ANSWER_IS})(?!\s*\?)", re.IGNORECASE)
_STATED_BEFORE = re.compile(  # "42 is the answer"
    rf"({QUANTITY.pattern})(?:\s\w+)?\s(?:is|was|as|isn't)(?: not)? (?:the|my|our) (?:(?:final|correct|right) )*answer\b",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"[\s:*$£€(\[{`\"'=]*(?:(?:clearly|therefore|thus|simply|indeed|approximately|about|roughly|exactly|just|actually"
    r"|equal to|still|only|[xyn] =)\s+)*[\s*$£€(`\"']*",
    re.IGNORECASE,
)
_INSTEAD = re.compile(r"(\W*)not [^,.;]{1,30}?[,;]?\s+(?:but|rather|it's|it is)\s+", re.IGNORECASE)
_CORRECTION = re.compile(
    rf"\b(?:no|wait|sorry|correction|scratch that|i mean|i meant|make that|actually)\b[^\n]{{0,40}}?({QUANTITY.pattern})",
    re.IGNORECASE,
)
_LARGE = r"dollars?|euros?|pounds?|hours?|hrs?|h|minutes?|mins?|feet|foot|ft|years?|weeks?|days?|months?|kg|km|m|met(?:er|re)s?"
_SMALL = r"cents?|pence|minutes?|mins?|seconds?|secs?|inches?|in|ounces?|oz|months?|days?|weeks?|hours?|grams?|g|m|cm"
# What follows a number that only begins a longer expression.
_GOES_ON = re.compile(
    "|".join(
        (
            r"\.\d|:\d|\s?\.?\.\.\d|,\s?-?\d",
            r"\s?[-+*/×÷^=:](?=\s?[$£€(]?[\d(])|\s?[-+*/^]\s?(?=\d?[a-z]\b(?!'))",
            rf"\s+(?:x|times|plus|minus|to|or|and|through)\s+(?:[a-z] = )?[$£€]?[-\d(]|\s+or\s+(?:{NUMBER_WORDS.pattern})",
            r"\s+(?:\w+\s+)?(?:more|less|fewer|greater|larger|smaller|higher|lower|other)\s+than\b",
            r"\s+or\s+(?:more|less|fewer|so|maybe|perhaps)\b|\s?(?:sqrt|pi\b|root)|[xyzn]\b",
            r"\s?(?!(?:[kcdm]?m|ft|in)\^[23])[a-z]\s?(?:[-+=^*]|/\d)",
            rf"\s+(?:{_LARGE})\b,?(?: and)?\s+\d+\s*(?:{_SMALL})\b",
        )
    ),
    re.IGNORECASE,
)
_MONEY = re.compile(r"(\d+)\s+(?:dollars?|euros?|pounds?) and (\d\d?)\s+(?:cents?|pence)\b", re.IGNORECASE)
_BOUND = words(
    "not, never, less than, more than, fewer than, over, under, at least, at most, up to, below, above"
)
# Near a number these say that it is not the answer, or not yet: "not 5", "5 ** 2", "less than 5".
_NO_STATEMENT = re.compile(
    r"[-+*/×=\\^<>](?!\w)|[<>≤≥]|\\|n't|"
    + words(
        "not, never, no, than, between, over, under, times, minus, plus, x, or, either, neither, at least"
    )
    + "|"
    + words("at most, up to, below, above, wrong, incorrect"),
    re.IGNORECASE,
)
_REASON = re.compile(
    r",?\s(?:since|because|given that|considering|if)\s.*$|,\s(?:as|for|which|where)\s.*$"
    r"|,\s\d+\s(?:\w+\s)?(?:more|less|fewer)\sthan\b.*$"
    r"|\s(?:after|in|within|during|over)\s(?:the\s)?(?:\d+|\w+)\s(?:days?|weeks?|months?|years?|hours?|minutes?|seconds?)\b[^\d=]*$",
    re.IGNORECASE | re.DOTALL,
)
_CONCLUDES = re.compile(
    words("so, therefore, thus, hence, in total, altogether, consequently, finally, in all, overall")
    + "|所以|因此|一共|よって|따라서",
    re.IGNORECASE,
)
_RESULT = re.compile(
    "=|"
    + words(
        "has, have, is left, are left, leav(?:e|es|ing), ends? up, remains?, gets?, makes?, needs?, pays?"
    )
    + "|"
    + words("costs?, earns?, becomes?, results?, total, answer, gives?"),
    re.IGNORECASE,
)
# No results, but remarks on the working.
_REMARK = re.compile(
    r"\W*(?:note|i (?:used|took|needed|checked|did|hope)|this (?:took|needs)|step \d+|(?:to )?check|to verify)\b",
    re.IGNORECASE,
)
_ALONE = r"\b(?:only|just|exactly|leaves|leaving|leave)\s+{word}\b|\b{word}\s+(?:\w+\s+)?(?:remains?|is left|are left|left|in all|in total|altogether)\b"
_BOLD = re.compile(
    rf"\*\*\s*(?:[a-zA-Z]\s*=\s*)?([$£€]?{QUANTITY.pattern})\s*(?:[a-zA-Z°%²]+\s*){{0,3}}[.!]?\s*\*\*"
)
_EXPRESSION = re.compile(  # what a root or pi makes of a number
    r"-?(?:[\d./()]{1,20}\s?\*?\s?)?(?:(?:sqrt|root)\s?\([^()]*\)|\bpi\b|(?<=\d)pi\b)"
    r"(?:\s?[*/]\s?[\d.]+|\s?\*?\s?pi\b|/\([^()]*\))?"
)
_ALTERNATIVE = re.compile(r"\s*(?:or|and/or)\s*(?:[a-zA-Z]\s*=\s*)?|\s+\w+\s+or\s+")
_SEVERAL = re.compile(  # an interval, a pair, or a list of numbers
    rf"[\[(][^\[\]()\n]*,[^\[\]()\n]*[\])]|(?:{QUANTITY.pattern})(?:, ?(?:and )?(?:{QUANTITY.pattern}))+"
)
_PAIRS = (("yes", "no"), ("true", "false"))
_SENTENCE = re.compile(r"(?<=[.!?。])\s+(?=\S)|\n+|(?<=。)")


class Found(NamedTuple):
    """The answer of a text."""

    answer: str
    after: str = ""
    """What follows its number; of an answer in words, all that is stated."""
    stated: bool = False
    """Whether the text says that it is the answer."""


def final_answer(text: str) -> str:
    r"""Return what the text gives as its answer.

    That is the inside of the last \boxed{}; else what follows the last "answer is" (or "Answer:", "####",
    and the like in other languages): the number with all that belongs to it, if one follows directly; the last
    result, if working with "=" follows; else the rest of the line. Without these words it is the last number of
    the last sentence that concludes ("so", "in total") or else of the text, reasons ("since 8 are taken off")
    left out; and "" if there is none. LaTeX is taken off.
    """
    return _find(text).answer


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
            return find_label(text, pair) == answer.casefold()
    if re.fullmatch(r"\(?[A-J]\)?", answer):
        return find_label(text, tuple("ABCDEFGHIJ")) == answer.strip("()")
    found = _find(text)
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


def _find(text: str) -> Found:
    if boxes := list(_BOX.finditer(text)):
        inside = unlatex(_braced(text, boxes[-1].end())).strip(" .$")
        return Found(inside, stated=True) if value(inside) is not None else _read(inside)
    readable = _MONEY.sub(lambda found: f"{found[1]}.{found[2]:0>2} dollars", unlatex(text))
    whole = readable.strip(" \n.$")
    if value(whole) is not None or _SEVERAL.fullmatch(whole):
        return Found(whole)
    stated = [one for one in _STATED.finditer(readable) if not _is_question(readable, one.end())]
    if reverse := list(_STATED_BEFORE.finditer(readable)):
        last = reverse[-1]
        if not stated or last.start() > stated[-1].start():
            is_denied = re.search(r"\bnot\b|n't", last[0]) or denied(readable.casefold(), *last.span(1))
            return Found("" if is_denied else last[1].strip(), stated=True)
    if stated:
        rest = readable[stated[-1].end() :]
        lines = [line for line in rest.split("\n") if line.strip(" *_`$\t")]
        found = _read(lines[0] if lines else "")
        corrected = (
            _CORRECTION.search(lines[0][len(found.answer) :])
            if lines and QUANTITY.match(found.answer)
            else None
        )
        return Found(corrected[1].strip(), stated=True) if corrected else found
    return _last_number(readable, text)


def _is_question(text: str, end: int) -> bool:
    return bool(re.match(r"[^.\n]{0,60}\?", text[end:]))


def _braced(text: str, start: int) -> str:
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + 1 : place]
    return text[start + 1 :]


def _read(statement: str) -> Found:
    """Read what follows "the answer is": a number, a result, or the words themselves."""
    statement = re.sub(r"^n't ", " not ", statement)
    statement = _INSTEAD.sub(r"\1", statement.strip(), count=1)
    several = re.search(rf"\b(?:or|and)\s+(?:[a-z]\s*=\s*)?[$£€(]?(?:{PLAIN_NUMBER})|\bor\b", statement)
    results = list(re.finditer(r"=[\s$£€]*", statement))
    starts = [results[-1].end()] if results and not several else []
    if not re.match(r"[(\[{]\s*-?\d[^)\]}]*,", statement):
        starts.append(_OPENING.match(statement).end())  # type: ignore[union-attr]  # it may be empty
    for start in starts:
        after = statement[start:]
        if expression := _EXPRESSION.match(after):
            return Found(expression[0].strip(), after[expression.end() :], True)
        number = QUANTITY.match(after)
        if number and not _GOES_ON.match(after, number.end()):
            return Found(number[0].strip(), after[number.end() :], True)
        if start and value(_closed(after)) is not None:
            return Found(_closed(after), stated=True)
    return Found(_closed(statement), statement, True)


def _closed(statement: str) -> str:
    """Take marks off the ends, and what follows the first sentence; brackets that belong together stay."""
    statement = re.split(r"(?<=\S)[.!](?=\s|$)", statement.strip())[0]
    statement = re.sub(r"^[\s:*`\"'$]+|[\s.!*`\"'$]+$", "", statement)
    if sum(map(statement.count, ")]}")) > sum(map(statement.count, "([{")):
        statement = statement.rstrip(")]}")
    return statement.strip(" .!")


def _last_number(text: str, marked: str) -> Found:
    """Find the result of a text that does not say what its answer is."""
    if bold := list(_BOLD.finditer(plain(marked))):
        return Found(bold[-1][1].strip(), plain(marked)[bold[-1].end(1) :])
    sentences = [one for one in _SENTENCE.split(unmarked(text)) if one and not one.rstrip().endswith("?")]
    holding = [one for one in sentences if QUANTITY.search(one) or _alone(one)]
    holding = [one for one in holding if not _REMARK.match(one)] or holding
    if not holding:
        spelled = [one[0] for sentence in sentences for one in NUMBER_WORDS.finditer(sentence)]
        return Found(next((one for one in reversed(spelled) if one.casefold() != "one"), ""))
    sentence = holding[-1]
    for one in reversed(holding):
        if _CONCLUDES.search(one) or _RESULT.search(one):
            sentence = one
            break
    if word := _alone(sentence):
        return Found(word)
    main = _REASON.sub("", re.sub(r"\([^()]*[a-z]{3}[^()]*\)", "", sentence))
    sentence = main if QUANTITY.search(main) else sentence
    expressions = list(_EXPRESSION.finditer(sentence))
    if expressions and not QUANTITY.search(sentence, expressions[-1].end()):
        return Found(expressions[-1][0].strip())
    numbers = list(QUANTITY.finditer(sentence))
    last, start = numbers[-1], numbers[-1].start()
    if len(numbers) > 1:
        between = sentence[numbers[-2].end() : start]
        is_range = between.strip() == "and" and re.search(r"\bbetween\s*$", sentence[: numbers[-2].start()])
        if is_range or _ALTERNATIVE.fullmatch(between):
            return Found(sentence[numbers[-2].start() : last.end()].strip())
    if denied_before(sentence.casefold(), start):
        return Found(f"not {last[0].strip()}")
    if bound := re.search(rf"{_BOUND}\s*$", sentence[:start], re.IGNORECASE):
        return Found(sentence[bound.start() : last.end()].strip())
    if (beyond := _GOES_ON.match(sentence, last.end())) and re.search(r"\w", beyond[0]):
        return Found(sentence[start:].strip(" ."))
    return Found(last[0].strip(), sentence[last.end() :])


def _alone(sentence: str) -> str:
    """Return a number in words that is stated as what remains: "so that only one remains"."""
    for found in NUMBER_WORDS.finditer(sentence):
        for around in re.finditer(_ALONE.format(word=re.escape(found[0])), sentence, re.IGNORECASE):
            covered = around.start() <= found.start() < around.end()
            if covered and not QUANTITY.search(sentence, found.end()):
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


def _units_agree(found: Found, answer: str) -> bool:
    """Whether the known units of both, if they have any, are the same."""
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
    """Whether the text says these words, and does not deny them or leave them open."""
    text = fold(unmarked(unlatex(text)))
    phrase = re.escape(fold(unlatex(answer)).strip(" ."))
    begin, end = BEFORE if phrase[:1].isalnum() else "", AFTER if phrase[-1:].isalnum() else ""
    for found in re.finditer(f"{begin}{phrase}{end}", text):
        near = text[max(0, found.start() - 20) : found.start()], text[found.end() : found.end() + 6]
        is_open = re.search(r"\b(?:either|or|between)\s(?:\w+\s)?$", near[0]) or re.match(r",? or\b", near[1])
        if not denied(text, found.start(), found.end()) and not is_open:
            return True
    return False
