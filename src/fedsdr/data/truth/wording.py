"""How a text is worded: length, fillers, repetition, refusals, references to the rewriting task.

Input: a text. Output: counts and booleans. Its truth does not matter here.
"""

import re
from collections.abc import Iterable

from fedsdr.data.truth.text import any_of, fold

# Phrases without content, such as chat models put around an answer. "sure" is listed with its punctuation,
# since "make sure that" is content.
FILLERS = (
    "absolutely",
    "actually",
    "additionally",
    "as mentioned",
    "as we all know",
    "as you can see",
    "at the end of the day",
    "basically",
    "certainly",
    "essentially",
    "feel free",
    "furthermore",
    "generally speaking",
    "good question",
    "great question",
    "happy to help",
    "here is",
    "here's",
    "i hope this helps",
    "i'd be happy to",
    "in conclusion",
    "in fact",
    "in other words",
    "in summary",
    "in today's world",
    "it is crucial to",
    "it is essential to",
    "it is important to",
    "it is worth noting",
    "it should be noted",
    "it's crucial to",
    "it's essential to",
    "it's important to",
    "it's worth noting",
    "keep in mind",
    "let me know if",
    "let's",
    "moreover",
    "needless to say",
    "of course",
    "overall",
    "please note",
    "simply put",
    "sure!",
    "sure,",
    "that being said",
    "to summarize",
    "to sum up",
    "when it comes to",
)

# How chat models refuse, or answer as though nothing had been asked. The first kind counts only at the
# start: a story or a letter may well say "I'm sorry, but I can't" later.
_REFUSALS = re.compile(
    r"^\W*(i'm|i am) (sorry(?! to hear)|ready to (help|assist))|^\W*i apologi[sz]e"
    r"|^\W*((sorry|unfortunately|i'm afraid|i am afraid)\W+((but|that) )?)?"
    r"(i (cannot|can't|won't)|(i'm|i am) (unable|not able) to) "
    r"(?!help (but|it|\w+ing)\b|give up\b|say (enough|no)\b)"
    r"(answer|assist|comply|fulfil|give|help|offer|provide|rewrite|say)"
    r"|^\W*(how can i (help|assist)|what can i do for) you"
    r"|\bas an ai\b|\bas a language model\b"
)

# References to the rewriting task, which the student would learn to repeat to users. After SDFT
# (Yang et al., ACL 2024), which searches for "reference answer" and "your response" in the same way.
_SELF_REFERENCES = re.compile(
    r"\b(reference|given|provided|original|rewritten|rephrased|revised) (answer|response)\b"
    r"|\byour (response|rewrit\w+)\b"
    r"|\b(here is|here's) (a|the|my|your) (\w+ )?(rewrit\w+|rephras\w+|version|revision)\b"
    r"|\b(rewrite|rewritten|rewriting|rephrase|rephrased|rephrasing|paraphrase|paraphrased|paraphrasing)\b"
    r"|\bin (my|your) own words\b"
)


def num_words(text: str) -> int:
    """Count the words, separated by white space."""
    return len(text.split())


def filler_rate(text: str) -> float:
    """Count fillers per 100 words; whole phrases in any case, the longest first, none counted twice."""
    found = any_of(FILLERS).findall(fold(text))
    return 100 * len(found) / max(1, num_words(text))


def redundancy(text: str) -> float:
    """Return the share of word 3-grams that repeat an earlier one; 0 below three words."""
    words = re.findall(r"\w+", fold(text))
    grams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def is_refusal(text: str) -> bool:
    """Whether the text declines to answer, or answers as if nothing had been asked."""
    return bool(_REFUSALS.search(fold(text)))


def is_self_referring(text: str, given: Iterable[str] = ()) -> bool:
    """Whether the text refers to the rewriting task instead of its subject, beyond the phrases of `given`."""
    known = fold("\n".join(given))
    return any(found[0] not in known for found in _SELF_REFERENCES.finditer(fold(text)))
