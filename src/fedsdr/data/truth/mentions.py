"""How strongly a mention of a choice indicates the answer: explicit, in passing, or in a list.

Input: a text in lower case, and the position of a mention. Output: a weight.
"""

import re
from dataclasses import dataclass
from enum import IntEnum

from fedsdr.data.truth.negation import asked, clause_before, sentence_after
from fedsdr.data.truth.text import ANSWER_IS, words


class Weight(IntEnum):
    """How strongly a mention indicates the answer."""

    LISTED = 0
    """In a question, or in a list of all choices."""
    WEAK = 1
    """In a concession or a condition, about a part only, or a letter in running text."""
    NAMED = 2
    CONCLUDED = 3
    """After "overall" or "therefore", or about the text, its tone and so on."""
    STATED = 4
    """As the answer: after "the answer is", at the start, on a separate line or in a box."""


@dataclass(frozen=True)
class Mention:
    """A place where a text names a choice."""

    choice: str
    """In folded form."""
    start: int
    end: int
    weight: Weight
    denied: bool


INTERJECTIONS = ("yes", "no", "true", "false")
_IS = words("is, are, was, would be, should be, must be, remains, seems?(?: to be)?, appears?(?: to be)?")
# Words allowed between "the answer is" and the choice.
_BETWEEN = (
    r"[\s\"'(\[{*=:$]*(?:"
    + words(
        "not, indeed, clearly, definitely, probably, most likely, likely, thus, therefore, simply, "
        "actually, still,"
        "rather, more, a, an, the, that, as, option, choice, letter, class, label, very, overall, of, is, "
        "to be, it is,"
        "it's, in fact, best, perhaps, quite, mostly, slightly, somewhat, strongly, mainly, predominantly, "
        "one of"
    )
    + r"[\s\"'(\[{*:]*){0,5}"
)
_ANSWER = re.compile(
    rf"(?:{ANSWER_IS}|"
    + words("answer, label, class, classification, category, verdict, prediction, choice, option, judg?ment")
    + r"(?! (?:that|which))[^.;!?\n,]{0,40}?"
    + rf"(?:{words('is, would be, should be, must be, remains')}|[\"']?\s*[:=]|->|→)|"
    + words(
        "(?:i|i'd|i'll|i would|i will) (?:choose|pick|select|go with|opt for), go with, labell?ed(?: as)?, "
        "option, choice,"
        "classif(?:y|ied)(?: \\w+){0,3} as, categori[sz]ed? as, i(?:'d| would)? (?:label|call|classify|rate)"
        "(?: \\w+){1,3}?(?: as)?"
    )
    + rf"|<answer>|選択肢|선택|选|選){_BETWEEN}$"
)
_TOPIC = re.compile(
    "(?:"
    + words(
        "sentiment, tone, sentence, statement, news, headline, text, review, tweet, message, claim, "
        "hypothesis,"
        "relation(?:ship)?, stance, polarity, rating, mood, outlook, article, passage, it, this, comment, "
        "conclusion,"
        "email, post, emotion"
    )
    + rf"[^.;!?\n,]{{0,40}}?(?:{_IS}|\bas\b|[:=])|(?:情绪|情感|感情|감정)[^.;!?\n,]{{0,20}}?[是は은])"
    + f"{_BETWEEN}$"
)
_LEAD_IN = re.compile(
    r"[\s\"'(\[{*#>-]*(?:(?:sure|certainly|of course|okay|ok|well)[!,.:]*\s+)?"
    r"(?:(?:here is|here's) [^\n:]{0,60}:\s*)?(?:[\"'{\s]*"
    + words(
        "label, sentiment, answer, output, prediction, class, category, response, result, a, option, choice"
    )
    + r"\W{0,3}[:=]\s*)?[\s\"'(\[{*]*"
)
_CLOSES = re.compile(r"[\"')\]}*]*\s*(?:[.,:;!)\n—}]|-\s|\(|$)")
_ENDS_LINE = re.compile(r"[\"')\]}.*!]*\s*(?:\n|$)")
_CONCLUDES = re.compile(
    words(
        "overall, in (?:conclusion|sum|summary|short|the end|total), on (?:the whole|balance), all in all, "
        "to sum up, so,"
        "therefore, thus, hence, consequently, ultimately, final(?:ly)?"
    )
    + "|所以|因此|总之|よって|따라서"
)
_WEAK = re.compile(
    words(
        "although, though, while, whereas, even (?:if|though), if, unless, despite, in spite of, whether,"
        "compared (?:with|to), at first, unlike, some (?:might|may|would|people|readers), sounds?, between,"
        "one (?:might|may|could) (?:think|say|argue|assume),"
        "(?:could|might|may|can) (?:also )?(?:be |have been )?"
        "(?:seen|read|taken|interpreted|construed|mistaken|viewed|considered|seem|sound|look)"
    )
)
_CONCEDES = re.compile(
    words("although, though, while, whereas, even (?:if|though), if, unless, despite, in spite of, unlike")
    + r"[^,.;!?\n]*$"
)
_WOULD = re.compile(r"\b(?:would|could|might) (?:have been|be)(?: called| seen as| an?)? ['\"]?$")
_SCORE = re.compile(r"['\"]?\s*[:=]\s*[01]?\.\d")  # one of several, as in "positive: 0.1, negative: 0.9"
_PART = re.compile(
    r"['\"]?\s+"
    + words(
        "elements?, aspects?, signs?, words?, parts?, notes?, undertones?, connotations?, points?, "
        "details?, phrases?,"
        "terms?, language, at first, in parts?, territory, numbers?, charge"
    )
)
_RIGHT = re.compile(
    r"['\")\]*:.-]*\s*(?:[^.;!?\n]{0,60}?\b(?:is|are|as|seems|would be(?![^.;\n]{0,25}\bif\b))\b"
    r"[^.;!?\n]{0,15}?"
    r"\b(?:correct|right|best|the answer|the (?:most )?\w+ (?:answer|choice|option|label)"
    r"|the only (?!wrong|incorrect|false))\b"
    r"|[-:—]?\s*(?:correct|right|true|✓|✔|✅)(?!\w)|remains\b|fits best\b)"
)
_RIGHT_LABEL = re.compile(r"['\")*]*\s*(?:is|would be|seems)\b")


def is_stated(text: str, start: int) -> bool:
    """Whether "the answer is" or an equivalent leads up to the position."""
    line = text[max(0, start - 120) : start].rsplit("\n", 1)[-1]
    return bool(_ANSWER.search(text, max(0, start - 120), start)) and not _CONCEDES.search(line)


def is_called_right(text: str, end: int) -> bool:
    """Whether the phrase that ends here is called the answer: "B is correct"."""
    return bool(_RIGHT.match(text, end))


def weigh(text: str, start: int, end: int, choice: str) -> Weight:
    """Weigh a mention of a choice in words."""
    before, after = text[max(0, start - 120) : start], text[end:]
    line = text[text.rfind("\n", 0, start) + 1 : start]
    at_start = _LEAD_IN.fullmatch(text[:start])
    if asked(text, end) or _SCORE.match(after):
        return Weight.LISTED
    if is_stated(text, start):
        return Weight.STATED
    if _CLOSES.match(after) and (at_start or (_LEAD_IN.fullmatch(line) and _ENDS_LINE.match(after))):
        return Weight.STATED
    if (
        at_start
        and choice in INTERJECTIONS
        and re.match(r"\s+(?:it|the|this|that|there|they|he|she|i|we|you)\b", after)
    ):
        return Weight.STATED
    if is_called_right(text, end) and _RIGHT_LABEL.match(after):
        return Weight.STATED
    is_conceded = (
        (_WOULD.search(before) and re.match(r"['\"]?,? (?:if|unless|had|but|were)\b", after))
        or _WEAK.search(clause_before(text, start))
        or _CONCEDES.search(before)
    )
    if _PART.match(after) or is_conceded or (choice == "true" and after.startswith(" that ")):
        return Weight.WEAK
    sentence = re.split(r"[.!?\n](?=\s|$)", before)[-1]
    if (
        _CONCLUDES.search(sentence)
        or _CONCLUDES.search(sentence_after(text, end)[:40])
        or _TOPIC.search(before)
    ):
        return Weight.CONCLUDED
    return Weight.NAMED
