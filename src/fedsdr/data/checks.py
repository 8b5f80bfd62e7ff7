"""Exact checks of a text against an example: what it loses, what it adds, how it is worded.

Goes in: an `Example` and a text, which is a rewriting of its response or a model's answer. Comes out:
counts and yes or no. No model is asked, so every number can be recomputed by hand; where a check is a
stand-in for entailment its docstring says how it errs.
"""

import re
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from fedsdr.data.examples import Example
from fedsdr.data.sandbox import run_python

# Phrases that carry no content, such as chat models put around an answer. "sure" stands with its
# punctuation, since "make sure that" is content.
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

# How chat models refuse, or answer as though nothing had been asked. The first kind counts at the
# start only: a story or a letter may well say "I'm sorry, but I can't" further on.
_REFUSALS = re.compile(
    r"^\W*(i'm|i am) (sorry(?! to hear)|ready to (help|assist))"
    r"|^\W*i (apologi[sz]e|(cannot|can't|won't|am unable to|am not able to) "
    r"(answer|assist|comply|fulfil|give|help|offer|provide|rewrite|say))"
    r"|^\W*(how can i (help|assist)|what can i do for) you"
    r"|\bas an ai\b|\bas a language model\b"
)

# Words about the task of rewriting, which the student would learn to say to users. After SDFT
# (Yang et al., ACL 2024), which looks for "reference answer" and "your response" in the same way.
_SELF_REFERENCES = re.compile(
    r"\b(reference|given|provided|original|rewritten|rephrased|revised) (answer|response)\b"
    r"|\byour (response|rewrit\w+)\b"
    r"|\b(here is|here's) (a|the|my|your) (\w+ )?(rewrit\w+|rephras\w+|version|revision)\b"
    r"|\b(rewrite|rewritten|rewriting|rephrase|rephrased|rephrasing|paraphrase|paraphrased|paraphrasing)\b"
    r"|\bin (my|your) own words\b"
)

# A sign counts where no letter, digit or bracket stands before it: 5-3 holds 5 and 3.
_NUMBER = r"(?:(?<![\w)\]])-)?(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_LIST_ORDINAL = re.compile(r"^[ \t]*\d+[.)][ \t]", re.MULTILINE)
_NO_WORKING = r"(?![\d.,]*\s*[-+*/x×=]\s*[$£€]?[\d(])"  # "the answer is 2 + 3 = 5" does not say 2
_ANSWER = re.compile(
    rf"answer is[\s:*$£€(\[{{`\"']*(?:(?P<number>{_NUMBER}(?:/\d+)?){_NO_WORKING}|(?P<words>[^\n]*))", re.I
)
# Beside a number these say that it is not the answer, or not yet: "not 5", "5 ** 2", "less than 5".
_NO_STATEMENT = re.compile(
    r"[-+*/x×=\\^<>](?!\w)|\\|\b(not|never|no|than|between|over|under|times|minus|plus)\b|n't", re.I
)
_LATEX = re.compile(r"\\(?:boxed|text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}|\\[()\[\]]|\\(?=[$%])")
_CODE_BLOCK = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "−": "-", "–": "-"})


def num_words(text: str) -> int:
    """Count the words, which are what white space separates."""
    return len(text.split())


def filler_rate(text: str) -> float:
    """Count fillers per 100 words; whole phrases in any case, the longest first, none counted twice."""
    found = _phrases(FILLERS).findall(_normalise(text))
    return 100 * len(found) / max(1, num_words(text))


def redundancy(text: str) -> float:
    """Return the share of word 3-grams that repeat an earlier one; 0 below three words."""
    words = re.findall(r"\w+", _normalise(text))
    grams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def find_label(text: str, choices: tuple[str, ...]) -> str:
    """Return the one choice that the text names as whole words; "" where it names none or several.

    Case does not matter. In "very negative" the choice "negative" does not count if "very negative" is
    a choice as well. Negation is not understood: "not negative" names "negative".
    """
    found = _choices_in(text, choices)
    return found.pop() if len(found) == 1 else ""


def final_answer(text: str) -> str:
    r"""Return what the text gives as its answer.

    That is what follows the last "answer is": the number, if one follows directly; the last result,
    if working with "=" follows; else the rest of the line. Without these words it is the last number
    of the text, and "" if there is none. LaTeX around it, such as \boxed{...}, is taken off.
    """
    text = _LATEX.sub(r"\1", text.translate(_PLAIN))
    if stated := list(_ANSWER.finditer(text)):
        number, words = stated[-1].group("number", "words")
        if number is None and (results := re.findall(rf"=[\s$£€]*({_NUMBER})", words)):
            return str(results[-1])
        return number or words.strip(" .!*`\"')]}")
    numbers = re.findall(_NUMBER, text)
    return numbers[-1] if numbers else ""


def same_answer(a: str, b: str) -> bool:
    """Compare two final answers: by value if both are numbers, else as text without regard to case.

    Commas, currency and percent signs, trailing zeros and a full stop at the end do not matter. Text
    is the same only if it is not empty.
    """
    left, right = _value(a), _value(b)
    if left is not None and right is not None:
        return left == right
    left_text, right_text = (_normalise(text).strip(" .") for text in (a, b))
    return left_text == right_text != ""


def lost(example: Example, text: str, code_timeout: float = 5.0) -> tuple[str, ...]:
    """Name the ground truth of the example that the text does not keep.

    Args:
        example: Only the kinds of ground truth that it carries are checked.
        text: A rewriting of its response, or an answer to its instruction.
        code_timeout: Seconds that the code in the text may run.

    Returns:
        Those of "label", "answer", "facts" and "tests" that are lost; empty if all are kept.
    """
    kinds = []
    if example.label and find_label(text, example.choices) != example.label:
        kinds.append("label")
    if example.answer and not _gives(text, example.answer):
        kinds.append("answer")
    if example.facts and not all(_says(_unnumbered(text), fact) for fact in example.facts):
        kinds.append("facts")
    if example.tests and not run_python(f"{extract_code(text)}\n\n{example.tests}\n", code_timeout):
        kinds.append("tests")
    return tuple(kinds)


def is_checkable(example: Example) -> bool:
    """Whether the example carries ground truth for `lost`."""
    return bool(example.label or example.answer or example.facts or example.tests)


def is_inconsistent(example: Example) -> bool:
    """Whether the example's own response loses its label, answer or facts, as no rewriting should.

    Such an example is wrong in the data or beyond `lost`; its rewritings count as unfaithful, whatever
    they say. Tests are left out, since running them takes long.
    """
    return bool(lost(replace(example, tests=""), example.response))


def unsupported(example: Example, text: str) -> bool:
    """Whether the text states what context, instruction and response do not: an exact stand-in.

    True if it names a wrong label that the response does not name (that the instruction lists it is no
    excuse), or a number that is nowhere in the example. It misses wrong statements without label or
    number, and takes a correct number that the response left out, such as a further step of a
    calculation, for unsupported. Numbers in words, and numbers that count the items of a list, are
    passed over; so are all numbers where the example carries tests, since a constant in a program is
    no statement. Never true of the response itself.
    """
    choices = example.choices if example.label else ()
    wrong = _choices_in(text, choices) - _choices_in(example.response, choices) - {example.label}
    if wrong or example.tests:
        return bool(wrong)
    given = "\n".join((example.system, example.context, example.instruction, example.response))
    return not _numbers_in(_unnumbered(text)) <= _numbers_in(given)


def is_refusal(text: str) -> bool:
    """Whether the text declines to answer, or speaks as if nothing had been asked."""
    return bool(_REFUSALS.search(_normalise(text)))


def is_self_referring(text: str) -> bool:
    """Whether the text speaks of the task of rewriting instead of its subject."""
    return bool(_SELF_REFERENCES.search(_normalise(text)))


def extract_code(text: str) -> str:
    """Return the inside of the first fenced block (to the end, if it is not closed), else the text."""
    block = _CODE_BLOCK.search(text)
    return block[1] if block else text


def _normalise(text: str) -> str:
    """Lower case, plain quotes and dashes, single spaces, no commas in thousands."""
    text = " ".join(text.translate(_PLAIN).casefold().split())
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)


def _phrases(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Match any of the phrases as whole words in normalised text, the longest first."""
    ranked = sorted(map(_normalise, phrases), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, ranked))})(?!\w)")


def _gives(text: str, answer: str) -> bool:
    """Whether the final answer is this one, or plain words around this number: "that she has 12 pens"."""
    given = final_answer(text)
    if same_answer(given, answer):
        return True
    numbers = re.findall(_NUMBER, given)
    return len(numbers) == 1 and same_answer(numbers[0], answer) and not _NO_STATEMENT.search(given)


def _says(text: str, fact: str) -> bool:
    """Whether the text holds the fact as whole words and whole numbers: "37" is not in "37.5" or "-37"."""
    phrase = re.escape(_normalise(fact))
    before = r"(?<![\w.])(?<!(?<![\w)\]])-)" if fact[0].isdigit() else r"(?<!\w)"
    after = r"(?![.,]?\d|\w)" if fact[-1].isdigit() else r"(?!\w)"
    return bool(re.search(before + phrase + after, _normalise(text)))


def _unnumbered(text: str) -> str:
    """Take off the numbers that count the items of lists: 1, 2, 3 and so on at the starts of lines."""
    counted = [0, *map(int, re.findall(r"\d+", " ".join(_LIST_ORDINAL.findall(text))))]
    is_list = all(number in (1, before + 1) for before, number in pairwise(counted))
    return _LIST_ORDINAL.sub("", text) if is_list else text


def _choices_in(text: str, choices: tuple[str, ...]) -> set[str]:
    spelled = {_normalise(choice): choice for choice in choices}
    return {spelled[found] for found in _phrases(choices).findall(_normalise(text))} if choices else set()


def _value(text: str) -> Fraction | None:
    plain = re.sub(r"[,$£€%\s]", "", text.translate(_PLAIN)).rstrip(".")
    return Fraction(plain) if re.fullmatch(r"-?\d+(\.\d+)?|-?\d+/0*[1-9]\d*", plain) else None


def _numbers_in(text: str) -> set[Fraction]:
    return {Fraction(found.replace(",", "")) for found in re.findall(_NUMBER, text.translate(_PLAIN))}
