"""Whether a text states a required fact: the same words and numbers, in the usual forms of paraphrases.

Input: a text, a fact and the true response. Output: a boolean. Equivalent forms are singular and plural,
numbers in words and digits, hyphens, accents of Latin letters, units and dates, "don't" and "do not",
"twice a day" and "two times daily", "Dickens, Charles", middle names. A synonym ("sit up straight" for
"upright") counts as lost.
"""

import re
import unicodedata
from dataclasses import dataclass
from itertools import pairwise

from fedsdr.data.truth.negation import asked, denied, denied_directly, left_open
from fedsdr.data.truth.numbers import ORDINALS, in_digits
from fedsdr.data.truth.text import UNSPACED, fold, plain, unmarked

_REWORDED = (
    (re.compile(r"\bcan(?:'t|not)\b"), "can not"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"\bshan't\b"), "shall not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"\btwice\b"), "2 times"),
    (re.compile(r"\bthrice\b"), "3 times"),
    (re.compile(r"\bonce (?=a |an |per |each |every |daily|weekly|monthly|yearly)"), "1 time "),
    (re.compile(r"\b(?:daily|(?:a|each|every) day)\b"), "per day"),
    (re.compile(r"\b(?:weekly|(?:a|each|every) week)\b"), "per week"),
    (re.compile(r"\b(?:monthly|(?:a|each|every) month)\b"), "per month"),
    (re.compile(r"\b(?:yearly|annually|(?:a|each|every) year)\b"), "per year"),
    (re.compile(r"\b(?:a|each|every) (night|hour|minute)\b"), r"per \1"),
    (re.compile(r"\bper ?cent\b"), "%"),
    (
        re.compile(r"\bdegrees? (celsius|fahrenheit|c|f)\b|°\s?([cf])\b"),
        lambda found: f"°{(found[1] or found[2])[0]}",
    ),
    (re.compile(r"\bkilomet(?:er|re)s?\b"), "km"),
    (re.compile(r"\bcentimet(?:er|re)s?\b"), "cm"),
    (re.compile(r"\bmillimet(?:er|re)s?\b"), "mm"),
    (re.compile(r"\bmet(?:er|re)s?\b"), "m"),
    (re.compile(r"\bkilograms?\b|\bkilos?\b"), "kg"),
    (re.compile(r"\bmilligrams?\b"), "mg"),
    (re.compile(r"\b(?:grams?|grammes?)\b"), "g"),
    (re.compile(r"\blit(?:er|re)s?\b"), "l"),
)
_MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
_DAY_FIRST = re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)? (?:of )?({_MONTHS})\b")
_DAY_LAST = re.compile(rf"\b({_MONTHS}) (\d{{1,2}})(?:st|nd|rd|th)?\b")
_TOKEN = re.compile(
    rf"(?P<number>(?<![\w)\]%°])-\d[\d.]*\d|(?<![\w)\]%°])-\d|\d+(?:\.\d+)+|\.\d+)|"
    rf"(?P<sign>(?<!\w)[a-z]{{1,2}}[+-](?!\w))|(?P<own>[{UNSPACED}])"
    rf"|(?P<word>(?:(?![{UNSPACED}])[^\W_]|[\u0300-\u036f\u0591-\u05c7\u064b-\u0655\u0900-\u0dff])+(?:\+\+|"
    rf"\#(?!\w))?)|(?P<other>[%°€$£,&/])"
)
_MARKED = re.compile(r"([a-z])[\u0300-\u036f]+")
_TURNED = re.compile(
    r"\b(?:not?|never|avoid\w*|without|neither|nor|don't|isn't|cannot|can't|keep away|stop\w*|less|hardly|"
    r"no longer|useless|unless|\w+n't)\b"
)


_NO_NAMES = ("and", "or", "the", "of", "in", "wa", "is", "not", "to", "by", "with", "from", "on", "at", "for")


@dataclass(frozen=True)
class Token:
    """A word, number or sign in normalised form, and its position in the folded text."""

    form: str
    start: int
    end: int


def says(text: str, fact: str, response: str) -> bool:
    """Whether the text states the fact somewhere without denying it, leaving it open or asking about it.

    Args:
        text: A rewriting or an answer.
        fact: A phrase; its words must occur in this order.
        response: The true response. If it has a negation in the fact's own sentence ("use no
            ice"), only a negation directly at the fact counts in the text. Unless it has the fact among
            several candidates ("ice or water") itself, such a list does not state it.
    """
    wanted = _tokens(_form(fact))
    if not wanted:
        return fold(fact) in fold(text)
    form = _form(text)
    true = _form(response)
    own = _spans(_tokens(true), wanted, fact)
    turned = _is_turned(true, own)
    spans = _spans(_tokens(form), wanted, fact)
    if not any(left_open(true, *span) for span in own):
        spans = [span for span in spans if not left_open(form, *span)]
    return any(_is_said(form, start, end, turned) for start, end in spans)


def _is_said(form: str, start: int, end: int, turned: bool | None) -> bool:
    if asked(form, end):
        return False
    if turned is None:
        return True
    return not (denied_directly(form, start, end) if turned else denied(form, start, end))


def _is_turned(form: str, spans: list[tuple[int, int]]) -> bool | None:
    """Whether the response negates near the fact's spans; None if it denies the fact itself."""
    if spans and all(denied(form, start, end) for start, end in spans):
        return None
    sentences = [
        re.split(r"[.!?](?!\w)|\n", form[:start])[-1] + re.split(r"[.!?](?!\w)|\n", form[start:])[0]
        for start, _ in spans
    ]
    return any(_TURNED.search(sentence) for sentence in sentences)


def _form(text: str) -> str:
    lines = (fold(line) for line in unmarked(plain(text)).split("\n"))
    text = "\n".join(line for line in lines if line)
    text = _MARKED.sub(r"\1", unicodedata.normalize("NFD", text))
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"(?<=[^\W\d])-(?=\w)|(?<=\d)-(?=[^\W\d])", " ", in_digits(text))
    text = re.sub(r"\b[a-z]+th\b|\bfirst\b|\bsecond\b|\bthird\b", lambda found: _ordinal(found[0]), text)
    for pattern, by in _REWORDED:
        text = pattern.sub(by, text)
    return _DAY_FIRST.sub(r"\2 \1", _DAY_LAST.sub(r"\1 \2", text))


def _ordinal(word: str) -> str:
    value = ORDINALS.get(word)
    if value is None or value == 0:
        return word
    ending = "th" if value in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")
    return f"{value}{ending}"


def _tokens(form: str) -> list[Token]:
    found = []
    for match in _TOKEN.finditer(form):
        word = match[0]
        if match.lastgroup == "word":
            word = _singular(word)
        found.append(Token(word, *match.span()))
    return found


def _singular(word: str) -> str:
    """Normalise an English plural to the singular, and the article to one form."""
    if word == "an":
        return "a"
    if len(word) > 3 and word.isascii() and word.isalpha():
        if word.endswith("ies") and len(word) > 4:
            return word[:-3] + "y"
        if word.endswith(("sses", "shes", "ches", "xes", "zes", "uses", "ises")):
            return word[:-2]
        if word.endswith("s") and not word.endswith(("ss", "us", "is")):
            return word[:-1]
    return word


def _spans(tokens: list[Token], wanted: list[Token], fact: str) -> list[tuple[int, int]]:
    """Spans of the fact: its words in order; a name also inverted with a comma, or with middle names."""
    forms = [token.form for token in wanted if token.form != ","]
    is_name = len(forms) == 2 and fact.istitle() and fact.replace(" ", "").isalpha()
    found = []
    for place, token in enumerate(tokens):
        end = None
        if token.form == forms[0]:
            end = _match(tokens, place, forms)
            if end is None and is_name:
                end = _surname(tokens, place, forms[1])
        elif is_name and [one.form for one in tokens[place : place + 3]] == [forms[1], ",", forms[0]]:
            end = place + 2
        if end is not None:
            found.append((token.start, tokens[end].end))
    return found


def _surname(tokens: list[Token], place: int, surname: str) -> int | None:
    """Index of the surname, if only other names or initials come between: Neil A. Armstrong."""
    for at in range(place + 1, min(place + 4, len(tokens))):
        if tokens[at].form == surname:
            return at
        if not tokens[at].form.isalpha() or tokens[at].form in _NO_NAMES:
            return None
    return None


def _match(tokens: list[Token], place: int, forms: list[str]) -> int | None:
    """Index of the last token of the fact, if it begins at `place`; "or more" may follow its number."""
    at = place
    for before, form in pairwise(forms):
        at += 1
        if before[0].isdigit() and [one.form for one in tokens[at : at + 2]] in (
            ["or", "more"],
            ["or", "so"],
        ):
            at += 2
        while at < len(tokens) and tokens[at].form == ",":
            at += 1
        if at >= len(tokens) or tokens[at].form != form:
            return None
    return at
