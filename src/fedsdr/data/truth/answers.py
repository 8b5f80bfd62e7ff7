r"""The final answer of a text: the content of \boxed{}, the text after "the answer is", or the last number.

Input: a text. Output: the answer as written, with the text around it. The rules read form, not meaning: if a
text does not state its answer, the last number may be something else.
"""

import re
from typing import NamedTuple

from fedsdr.data.truth.negation import called_wrong, denied, denied_before
from fedsdr.data.truth.numbers import (
    NUMBER_WORDS,
    PLAIN_NUMBER,
    QUANTITY,
    unlatex,
    value,
)
from fedsdr.data.truth.text import ANSWER_IS, plain, unmarked, words

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_STATED = re.compile(rf"(?:{ANSWER_IS})(?!\s*\?)", re.IGNORECASE)
_STATED_BEFORE = re.compile(  # "42 is the answer"
    rf"({QUANTITY.pattern})(?:\s\w+)?\s(?:is|was|as|isn't)(?: not)? (?:the|my|our) (?:(?:final|correct|"
    rf"right) )*answer\b",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"[\s:*$£€(\[{`\"'=]*(?:(?:clearly|therefore|thus|simply|indeed|approximately|about|roughly|exactly|"
    r"just|actually"
    r"|equal to|still|only|[xyn] =)\s+)*[\s*$£€(`\"']*",
    re.IGNORECASE,
)
_INSTEAD = re.compile(r"(\W*)not [^,.;]{1,30}?[,;]?\s+(?:but|rather|it's|it is)\s+", re.IGNORECASE)
_CORRECTION = re.compile(
    rf"\b(?:no|wait|sorry|correction|scratch that|i mean|i meant|make that|"
    rf"actually)\b[^\n]{{0,40}}?({QUANTITY.pattern})",
    re.IGNORECASE,
)
_LARGE = words(
    "dollars?, euros?, pounds?, hours?, hrs?, h, minutes?, mins?, feet, foot, ft, years?, weeks?, days?,"
    "months?, kg, km, m, met(?:er|re)s?"
)
_SMALL = words(
    "cents?, pence, minutes?, mins?, seconds?, secs?, inches?, in, ounces?, oz, months?, days?, weeks?,"
    "hours?, grams?, g, m, cm"
)
# Text after a number that only begins a longer expression.
_GOES_ON = re.compile(
    "|".join(
        (
            r"\.\d|:\d|\s?\.?\.\.\d|,\s?-?\d",
            r"\s?[-+*/×÷^=:](?=\s?[$£€(]?[\d(])|\s?[-+*/^]\s?(?=\d?[a-z]\b(?!'))",
            rf"\s+(?:x|times|plus|minus|to|or|and|through)\s+(?:[a-z] = )?[$£€]?[-\d(]|"
            rf"\s+or\s+(?:{NUMBER_WORDS.pattern})",
            r"\s+(?:\w+\s+)?(?:more|less|fewer|greater|larger|smaller|higher|lower|other)\s+than\b",
            r"\s+(?:squared|cubed|factorial|divided by|multiplied by|to the power)\b",
            r"\s+or\s+(?:more|less|fewer|so|maybe|perhaps)\b|\s?(?:sqrt|pi\b|root)|[xyzn]\b",
            r"\s?(?!(?:[kcdm]?m|ft|in)\^[23])[a-z]\s?(?:[-+=^*]|/\d)",
            rf"\s+{_LARGE},?(?: and)?\s+\d+\s*{_SMALL}",
        )
    ),
    re.IGNORECASE,
)
_MONEY = re.compile(r"(\d+)\s+(?:dollars?|euros?|pounds?) and (\d\d?)\s+(?:cents?|pence)\b", re.IGNORECASE)
_BOUND = words(
    "not, never, less than, more than, fewer than, over, under, at least, at most, up to, below, above,"
    "twice, double, triple, half of, half"
)
_REASON = re.compile(
    r",?\s(?:since|because|given that|considering|if)\s.*$|,\s(?:as|for|which|where)\s.*$"
    r"|,\s\d+\s(?:\w+\s)?(?:more|less|fewer)\sthan\b.*$"
    r"|\s(?:after|in|within|during|over)\s(?:the\s)?(?:\d+|\w+)\s(?:days?|weeks?|months?|years?|hours?|"
    r"minutes?|seconds?)\b[^\d=]*$",
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
# Remarks on the working, not results.
_REMARK = re.compile(
    r"\W*(?:note|i (?:used|took|needed|checked|did|hope)|this (?:took|needs)|step \d+|(?:to )?check|"
    r"to verify)\b",
    re.IGNORECASE,
)
_ALONE = (
    r"\b(?:only|just|exactly|leaves|leaving|leave)\s+{word}\b"
    r"|\b{word}\s+(?:\w+\s+)?(?:remains?|is left|are left|left|in all|in total|altogether)\b"
)
_BOLD = re.compile(
    rf"\*\*\s*(?:[a-zA-Z]\s*=\s*)?([$£€]?{QUANTITY.pattern})\s*(?:[a-zA-Z°%²]+\s*){{0,3}}[.!]?\s*\*\*"
)
_EXPRESSION = re.compile(  # a number with a root or pi
    r"-?(?:[\d./()]{1,20}\s?\*?\s?)?(?:(?:sqrt|root)\s?\([^()]*\)|\bpi\b|(?<=\d)pi\b)"
    r"(?:\s?[*/]\s?[\d.]+|\s?\*?\s?pi\b|/\([^()]*\))?"
)
_ALTERNATIVE = re.compile(r"\s*(?:or|and/or)\s*(?:[a-zA-Z]\s*=\s*)?|\s+\w+\s+or\s+")
_SEVERAL = re.compile(  # an interval, a pair, or a list of numbers
    rf"[\[(][^\[\]()\n]*,[^\[\]()\n]*[\])]|(?:{QUANTITY.pattern})(?:, ?(?:and )?(?:{QUANTITY.pattern}))+"
)
_SENTENCE = re.compile(r"(?<=[.!?。])\s+(?=\S)|\n+|(?<=。)")


_THERE_ARE = re.compile(  # "there are 60 chairs in 5 rows of 12"
    rf"\b(?:there (?:is|are|will be|were)|there're|"
    rf"total of) ({QUANTITY.pattern})(?=\s[a-z])(?! or\b)(?![^,;=]*[,;=])",
    re.IGNORECASE,
)


class Found(NamedTuple):
    """The answer of a text."""

    answer: str
    after: str = ""
    """The text after its number; for an answer in words, the whole statement."""
    stated: bool = False
    """Whether the text states explicitly that it is the answer."""


def final_answer(text: str) -> str:
    r"""Return the final answer of the text.

    That is the content of the last \boxed{}; otherwise the text after the last "answer is" (or "Answer:",
    "####", and equivalents in other languages): the number with its unit, fraction and so on if one follows
    directly; the last result if working with "=" follows; otherwise the rest of the line. Without these
    words it is the last number of the last sentence that concludes ("so", "in total") or has a result ("she
    has 5"), excluding reasons ("since 8 are taken off"); "" if there is none. LaTeX is removed.
    """
    return find_answer(text).answer


def find_answer(text: str) -> Found:
    """Find the answer of a text, as `final_answer` does, with the text around it."""
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
    """Read the text after "the answer is": a number, a result, or the words themselves."""
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
    """Keep the first sentence without marks at its ends; matching brackets stay."""
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
    if there := _THERE_ARE.search(sentence):
        return Found(there[1].strip(), sentence[there.end(1) :])
    numbers = list(QUANTITY.finditer(sentence))
    last, start = numbers[-1], numbers[-1].start()
    if len(numbers) > 1:
        between = sentence[numbers[-2].end() : start]
        is_range = between.strip() == "and" and re.search(r"\bbetween\s*$", sentence[: numbers[-2].start()])
        if is_range or _ALTERNATIVE.fullmatch(between):
            return Found(sentence[numbers[-2].start() : last.end()].strip())
    if denied_before(sentence.casefold(), start) or called_wrong(sentence, last.end()):
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
