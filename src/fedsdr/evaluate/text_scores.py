"""Scores of free text against the true response: exact match, token F1 and ROUGE-L.

They compare words, not meaning: a good answer in other words scores low, a false one in the same words scores
high. Tokens are words without case or punctuation; in scripts without blanks each character is a token.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from fedsdr.data.truth.text import UNSPACED, plain

_TOKEN = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


def tokens(text: str) -> list[str]:
    """The words of a text, in order."""
    return _TOKEN.findall(plain(text).casefold())


def exact_match(text: str, truth: str) -> float:
    """1 if both texts are equal, ignoring white space and Unicode form; case and punctuation count."""
    one, other = (" ".join(unicodedata.normalize("NFC", side).split()) for side in (text, truth))
    return float(one == other)


def token_f1(text: str, truth: str) -> float:
    """Harmonic mean of precision and recall of the tokens as multisets.

    Rajpurkar et al., SQuAD, EMNLP 2016. Differs: articles count.
    """
    given, true = tokens(text), tokens(truth)
    return _f1((Counter(given) & Counter(true)).total(), len(given), len(true))


def rouge_l(text: str, truth: str) -> float:
    """ROUGE-L: 2 P R / (P + R), P and R the longest common subsequence over the tokens of text and truth.

    Lin, ACL 2004, with beta = 1.
    """
    given, true = tokens(text), tokens(truth)
    return _f1(_common_subsequence(given, true), len(given), len(true))


def _f1(num_common: int, num_given: int, num_true: int) -> float:
    return 2 * num_common / (num_given + num_true) if num_common else 0.0


def _common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, by the table of all prefixes, a row at a time."""
    row = [0] * (len(other) + 1)
    for token in one:
        before = row
        row = [0]
        for place, another in enumerate(other):
            row.append(before[place] + 1 if token == another else max(row[place], before[place + 1]))
    return row[-1]
