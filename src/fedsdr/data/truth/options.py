"""Where a text names the letter of an option: A, (B), C., "the answer is d".

Input: a text in its original case, and the letters. Output: positions with their weights. "A" is mostly an
article and "I" a pronoun, letters name vitamins and people, and models repeat the options before they
choose.
"""

import re
from collections.abc import Sequence

from fedsdr.data.truth.mentions import Weight, is_called_right, is_stated
from fedsdr.data.truth.negation import asked
from fedsdr.data.truth.text import AFTER, BEFORE, words

Place = tuple[int, int, str, Weight | None]
"""Start, end, choice in folded form, and its weight if known."""

_LETTER = re.compile(rf"{BEFORE}(?<!')[A-Za-z](?!')(?!-\w){AFTER}")
_CLOSED = re.compile(r"\s?[).:\]]|\s?[-—]\s|\s*$|\s*\n|,")
_NO_NOUN = re.compile(
    r"\s+"
    + words(
        "is, are, was, were, and, or, because, since, as, would, seems, but, not, which, here, though, fits"
    )
)
_NAMED_BY_LETTER = re.compile(
    words(
        "vitamins?, hepatitis, types?, groups?, class, grade, plan, figure, part, section, point, appendix,"
        " phase, dr, mr"
    )
    + r"\.?\s+$",
    re.IGNORECASE,
)
_VERDICT = re.compile(
    r"[\s).:\]\"'-]*(?:[^.\n]{0,80}(?:[-:—(]|\bis|->)\s*)?(?:correct|right|yes|✓|✔|✅|"
    r"this is (?:the )?(?:correct|right))(?!\w)"
)


def find_letters(text: str, letters: Sequence[str]) -> list[Place]:
    """Find single letters: in running text only capitals; in any case if stated as the answer or enclosed.

    Args:
        text: In its original case; lower-casing must not change its length.
        letters: In lower case.
    """
    lower = text.casefold()
    found: list[Place] = []
    heads: list[int] = []
    for match in _LETTER.finditer(text):
        start, end = match.span()
        if match[0].lower() not in letters:
            continue
        is_head = not re.search(r"[^\W_]", text[text.rfind("\n", 0, start) + 1 : start])
        weight = _weigh(text, lower, start, end, is_head)
        if weight is not None:
            if is_head and weight == Weight.STATED:
                heads.append(len(found))
            found.append((start, end, match[0].lower(), weight))
    return _without_options(lower, found, heads, letters)


def _weigh(text: str, lower: str, start: int, end: int, is_head: bool) -> Weight | None:
    """Weigh a letter; None if it does not name an option."""
    is_capital = text[start].isupper()
    closed = _CLOSED.match(text, end)
    enclosed = text[:start].endswith(("(", "[")) and text[end:].startswith((")", "]"))
    is_letter = is_capital and not _is_word(text, start, end)
    if asked(lower, end):
        return Weight.LISTED if is_letter or enclosed else None
    if is_stated(lower, start):
        return Weight.STATED if is_letter or closed or enclosed else None
    if is_head and (enclosed or (closed and (is_capital or re.match(r"\)|[\s.\]]*$", text[end:])))):
        return Weight.STATED
    if not is_letter and not enclosed:
        return None
    if is_called_right(lower, end):
        return Weight.STATED
    is_named = enclosed or re.match(r"\W{0,2}\s*(?:is|are|was)\b|[,.)]", text[end:])
    return Weight.NAMED if is_named else Weight.WEAK


def _is_word(text: str, start: int, end: int) -> bool:
    """Whether a capital is the article, the pronoun, an initial or part of a name such as "vitamin C"."""
    after = text[end:]
    if text[start] == "I" and not re.match(r"\s*[.)\]:,]", after):
        return True
    if text[start] == "A" and re.match(r"\s+[a-z]", after) and not _NO_NOUN.match(after):
        return True
    return bool(_NAMED_BY_LETTER.search(text[:start]) or re.match(r"\.\s?(?:[A-Z]\.|[a-z])", after))


def _without_options(lower: str, found: list[Place], heads: list[int], letters: Sequence[str]) -> list[Place]:
    """Remove the weight of a list (A. ..., B. ..., C. ...), except where a line calls its option right.

    If the first lettered line does not begin the list that follows, it is the answer.
    """
    heading = [found[place][2] for place in heads]
    if len(set(heading)) < 2:
        return found
    is_list = heading[:2] == sorted(letters)[:2]
    new = list(found)
    for place in heads[0 if is_list else 1 :]:
        start, end, letter, _ = found[place]
        is_right = _VERDICT.match(lower[end:].split("\n")[0])
        new[place] = (start, end, letter, Weight.STATED if is_right else Weight.LISTED)
    return new
