"""Text normalisation and word boundaries, shared by all checks.

Input: text as people and models write it. Output: the same text with one spelling for each character.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

# Scripts without blanks between words, or (Korean) with endings attached without one: Thai to Tibetan,
# Myanmar, Khmer, kana, Han, Hangul. A digit next to one of these is a separate word: 共42个.
UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
)
# Marks that modify the letter before them and do not match \w: accents, Hebrew, Arabic and Indic vowel signs.
_MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u0655\u0670\u0900-\u0963\u0966-\u0dff"
# A word may begin or end here. Between letters of scripts that use blanks it may not.
BEFORE = rf"(?<![^\W{UNSPACED}])(?<![{_MARKS}])"
AFTER = rf"(?!(?![{UNSPACED}])\w|[{_MARKS}])"

# "The answer is", "Answer:", "#### " and the same in other languages.
_IS = r"(?:\bis\b|\bwould be\b|\bshould be\b|\bmust be\b|\bequals\b|:|=|->|→)"
ANSWER_IS = "|".join(
    (
        rf"\banswer\s*(?:\([^()\n]{{1,30}}\)\s*)?{_IS}",
        r"\banswer is(?=n't\b)",
        "####",
        r"答案(?:应该|應該)?\s*(?:是|为|為|:|选|選)",
        r"(?:答え|正解|解答)\s*(?:は|:)",
        r"(?:정답|답)\s*(?:은|:)",
        r"คำตอบ(?:ที่ถูกต้อง)?\s*(?:คือ|:)",
        r"\brespuesta(?: correcta| final)?\s*(?:es\b|:)",
        r"\bréponse(?: correcte| finale)?\s*(?:est\b|:)",
        r"\bantwort\s*(?:ist\b|lautet\b|:)",
        r"\bresposta(?: correta| final)?\s*(?:é\b|:)",
        r"\brisposta(?: corretta| finale)?\s*(?:è\b|:)",
        r"\bantwoord\s*(?:is\b|:)",
        r"\bответ\s*[:—-]",
    )
)

_QUOTES = str.maketrans("’‘ʼ“”„«»「」『』−‐‑‒–⁄、。", '\'\'\'"""""""""-----/,.')
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\ufe0f"))
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_POWER = re.compile(f"(?<=[\\w)])⁻?[{_SUPERSCRIPTS}]+")
_VULGAR = re.compile(r"(\d)?\s?([¼½¾⅐-⅞])")


def plain(text: str) -> str:
    """Normalise each character: NFKC, straight quotes, one hyphen, ASCII digits, m^2 for m².

    Lines and case are kept. ½ becomes 1/2, and 3½ becomes 3 1/2. Zero-width marks are removed.
    """
    text = text.translate(_INVISIBLE)
    if not text.isascii():
        text = _VULGAR.sub(_fraction, _POWER.sub(_power, text))
        text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
        text = re.sub(r"[^\D0-9]", lambda found: str(unicodedata.decimal(found[0])), text)
    return text


def fold(text: str) -> str:
    """Also fold case, collapse white space to single blanks, and remove thousands commas."""
    text = unicodedata.normalize("NFKC", " ".join(plain(text).casefold().split()))
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)


def unmarked(text: str) -> str:
    """Remove Markdown's marks of emphasis, headings, quotations and code: **Positive** is Positive."""
    text = re.sub(r"^[ \t]*(?:#{1,6}(?=\s)|>+)[ \t]*", "", text, flags=re.MULTILINE)
    return re.sub(r"\*\*+|(?<!\w)\*(?=\S)|(?<=\S)\*(?!\w)|(?<!\w)_+(?=\w)|(?<=\w)_+(?!\w)|`", "", text)


@lru_cache(maxsize=1024)
def any_of(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Match any of the phrases as whole words in folded text, the longest first."""
    return re.compile(f"{BEFORE}(?:{alternatives(phrases)}){AFTER}")


def alternatives(phrases: Iterable[str]) -> str:
    """Write the phrases, folded, as one pattern, the longest first; a blank matches any white space."""
    ranked = sorted(map(fold, phrases), key=len, reverse=True)
    return "|".join(re.escape(phrase).replace("\\ ", r"\s+") for phrase in ranked)


def words(listed: str) -> str:
    """Convert a comma-separated list of patterns to one pattern of whole words."""
    patterns = (" ".join(one.split()) for one in re.split(r",(?![^{}]*\})", listed))
    return rf"\b(?:{'|'.join(patterns)})\b"


def _power(found: re.Match[str]) -> str:
    digits = "".join(str(_SUPERSCRIPTS.index(one)) for one in found[0].lstrip("⁻"))
    return f"^{'-' if found[0][0] == '⁻' else ''}{digits}"


def _fraction(found: re.Match[str]) -> str:
    whole, fraction = found.groups()
    return f"{whole or ''} {unicodedata.normalize('NFKC', fraction)}".strip() if whole else found[2]
