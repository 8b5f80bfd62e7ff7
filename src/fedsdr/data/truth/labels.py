"""Which of several labels a text gives as its answer: words, phrases, or the letters of options.

Input: a text and the choices. Output: one choice, or none if the text names none, denies it, leaves it open
or names several. Each mention of a choice has a weight (`mentions`): the explicit answer beats a conclusion,
and a conclusion beats a passing mention. The rules read words, not meaning: synonyms of a label
("ungrammatical" for "unacceptable") are unknown, and a label that is only implied does not count.
"""

import re
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from fedsdr.data.truth.mentions import INTERJECTIONS, Mention, Weight, weigh
from fedsdr.data.truth.negation import denied, denied_after
from fedsdr.data.truth.options import Place, find_letters
from fedsdr.data.truth.text import AFTER, BEFORE, alternatives, fold, plain, unmarked, words

_CORRECTS = re.compile(
    words(
        "wait, actually, correction, sorry, no(?=,), on second thought, instead, but, however, so, "
        "therefore, thus, hence,"
        "final(?:ly)?, overall, in conclusion, rather, ultimately, revised?, re-?read\\w*, "
        "looking (?:again|closer)"
    )
    + "|所以|因此|但"
)
_UNDECIDED = re.compile(
    "|".join(
        (
            r"\b(?:not|n't|im|un|in)[ -]?(?:sure|certain|clear|decided)\b"
            r"(?= (?:whether|if|which|what|about the (?:label|sentiment|answer)))",
            r"\b(?:(?:i am|i'm) (?:unsure|uncertain|undecided|not sure)|not sure)\b",
            r"\b(?:sentiment|label|answer|tone|it|relation|stance) (?:is|remains) (?:rather |quite |too )?"
            r"(?:unclear|uncertain|ambiguous|inconclusive|undetermined|open)\b",
            r"\b(?:cannot|can't|could not|couldn't|(?:unable|hard|difficult|impossible|tough|not possible|"
            r"no way) to)"
            r"(?: \w+ly)? (?:tell|say|determine|decide|judge|know|classify|conclude|assign|"
            r"infer)\b(?! (?:how|when|that))",
            r"\b(?:cannot|can't|could not|couldn't) be (?:determined|known|decided|inferred|classified|"
            r"told|judged)\b",
            r"\b(?:not enough|insufficient|too little) (?:info(?:rmation)?|context|evidence|detail)\b",
            words(
                "(?:it|that) depends, i (?:do not|don't) know, no idea, either way, undecidable, undetermined"
            ),
            words("torn between"),
        )
    )
)
_OPEN_CHOICES = ("unknown", "uncertain", "unclear", "undetermined", "ambiguous", "maybe")
_NO_ANSWER = re.compile(  # "no" as an answer, not as in "no evidence" or "no longer"
    r"['\"]|\W*$|\s*[.,;:!?)\n—]|\s+-|\s*(?:"
    + words(
        "it, the, this, that, there, they, he, she, i, we, you, because, since, as, and, but, is, was, are,"
        " would, rather, or, nor"
    )
    + ")"
)
_JOINT = re.compile(
    r"[\s'\")*]*(?P<by>/|\||,\s*(?:or|and|nor|but)?|or|and/or|and|nor|but(?: rather)?|,?\s*rather|or rather)"
    r"[\s'\"(*]*(?:(?:a|an|the|also|option|as|instead)\s+)?['\"(]*"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_STYLE = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit)\s*\{([^{}]*)\}")


def find_label(text: str, choices: tuple[str, ...]) -> str:
    """Return the single choice that the text gives as its label; "" if there is none or several.

    Case, Unicode form, Markdown and - or _ for a blank do not matter; of choices that become equal, the
    first is returned. In "very negative" the choice "negative" does not count if "very negative" is a choice
    as well. If all choices are single letters, only capitals are read, and "answer is X", "(X)", "X." and
    "X:" beat letters in running text. A denied label ("not positive", "positive is wrong") does not count;
    of exactly two choices the other one is then meant, unless the text names a choice.
    """
    spelled = {fold_label(choice): choice for choice in reversed(choices)}
    return spelled.get(_decide(*_read(text, choices), tuple(spelled)), "") if choices else ""


def fold_label(label: str) -> str:
    """Normalise a label for comparison: case, Unicode form, and - or _ for a blank."""
    return re.sub(r"(?<=\w)[-_\s]+(?=\w)", " ", fold(label))


def named_labels(text: str, choices: tuple[str, ...]) -> set[str]:
    """Return the folded choices that the text asserts: not denied, asked about or merely listed."""
    mentions, _ = _read(text, choices) if choices else ([], "")
    return {one.choice for one in mentions if one.weight >= Weight.NAMED and not one.denied}


def _read(text: str, choices: tuple[str, ...]) -> tuple[list[Mention], str]:
    """Find and weigh all mentions; also return the text that their positions refer to."""
    text = unmarked(_STYLE.sub(r"\1", plain(text)).replace("$", ""))
    text = _BOX.sub(r"answer: \1\n", text)
    keys = tuple(dict.fromkeys(map(fold_label, choices)))
    lower = text.casefold()
    if all(re.fullmatch(r"[a-z]", key) for key in keys) and len(text) == len(lower):
        places = find_letters(text, keys)
    else:
        lower = re.sub(r"[^\S\n]+", " ", lower)
        places = _find_choices(lower, keys)
    mentions = [
        Mention(
            key,
            start,
            end,
            weigh(lower, start, end, key) if weight is None else weight,
            denied(lower, start, end),
        )
        for start, end, key, weight in places
    ]
    return _unlisted(lower, _join(lower, mentions), len(keys)), lower


@lru_cache(maxsize=256)
def _pattern(keys: tuple[str, ...]) -> re.Pattern[str]:
    """Match a choice: - or _ may stand for blanks, "not possible" for "it is not possible"."""
    forms = {key: number for number, key in enumerate(keys)}
    for number, key in enumerate(keys):
        core = re.sub(r"^(?:it is|it's|there is|this is|the|a|an) ", "", key)
        if " " in core:
            forms.setdefault(core, number)
    parts = []
    for place, form in enumerate(sorted(forms, key=len, reverse=True)):
        body = alternatives((form,)).replace(r"\s+", r"[\s_-]+")
        body = re.sub(r"^non\[\\s_-\]\+", r"non[\\s_-]*", body)
        before, after = BEFORE, AFTER
        if form.isdigit():
            before, after = r"(?<![\w.,/^-])", r"(?![.,]?\d|\w|\^|%)"
        begin, end = before if form[0].isalnum() else "", after if form[-1].isalnum() else ""
        parts.append(f"(?P<c{forms[form]}_{place}>{begin}{body}{end})")
    return re.compile("|".join(parts))


def _find_choices(text: str, keys: tuple[str, ...]) -> list[Place]:
    found: list[Place] = []
    for match in _pattern(keys).finditer(text):
        start, end = match.span()
        key = keys[int(str(match.lastgroup)[1:].split("_")[0])]
        out_of = key.isdigit() and re.search(r"\b(?:out )?of\s+$", text[:start])
        if not out_of and (key != "no" or _is_answer(text, start, end)):
            found.append((start, end, key, None))
    # "It is impossible to tell" means the choice that leaves it open.
    is_open = next((key for key in keys if _UNDECIDED.search(key) or key in _OPEN_CHOICES[:4]), None)
    for match in _UNDECIDED.finditer(text) if is_open else ():
        start, end = match.span()
        if not any(one[2] == is_open and one[0] < end and start < one[1] for one in found):
            found = [one for one in found if not start <= one[0] < end]
            found.append((start, end, str(is_open), Weight.CONCLUDED))
    return sorted(found, key=lambda one: one[:2])


def _is_answer(text: str, start: int, end: int) -> bool:
    """Whether this "no" is an answer."""
    begins = re.search(r"(?:^|[.!?:;\n,]|\b(?:so|is|answer|say|a))[\s\"'(*]*$", text[:start])
    if re.search(r"\ba clear $|\ba $", text[:start]):
        return True
    return bool(_NO_ANSWER.match(text, end) and (begins or not text[end:].startswith(" ")))


def _join(text: str, mentions: list[Mention]) -> list[Mention]:
    """Give joined mentions ("A or B") the same weight, and deny them together."""
    new = list(mentions)
    for place, (_, after) in enumerate(pairwise(mentions)):
        before = new[place]
        joint = _JOINT.fullmatch(text, before.end, after.start)
        if not joint or Weight.LISTED in (before.weight, after.weight):
            continue
        by = joint["by"].strip(", ")
        weight = max(before.weight, after.weight)
        if by in ("or", "and", "nor", "/", "|", "and/or"):
            new[place] = replace(before, weight=weight)
            is_denied = before.denied or denied_after(text, after.end)
            new[place + 1] = replace(after, weight=weight, denied=is_denied)
        elif by.startswith(("but", "rather", "or rather")) or before.denied:
            new[place + 1] = replace(after, weight=weight, denied=False)
        else:
            new[place + 1] = replace(after, weight=weight)
        if by in ("or", "and", "nor", "/", "|", "and/or", "") and denied_after(
            text, after.end
        ):  # "A and B are wrong"
            for at in range(place, -1, -1):
                new[at] = replace(new[at], denied=True)
                if at == 0 or not _JOINT.fullmatch(text, new[at - 1].end, new[at].start):
                    break
    return new


def _unlisted(text: str, mentions: list[Mention], num_choices: int) -> list[Mention]:
    """Remove the weight of a list of all choices, such as "positive, negative or neutral"."""
    new = list(mentions)
    for first in range(len(new)):
        last = first
        while last + 1 < len(new) and _JOINT.fullmatch(text, new[last].end, new[last + 1].start):
            last += 1
        run = new[first : last + 1]
        if len({one.choice for one in run}) == num_choices > 1 and not any(one.denied for one in run):
            by = text[run[-2].end : run[-1].start]
            if re.search(r"\bor\b|/|\|", by) or num_choices > 2:
                new[first : last + 1] = [replace(one, weight=Weight.LISTED) for one in run]
    return new


def _decide(mentions: list[Mention], text: str, keys: tuple[str, ...]) -> str:
    """Return the choice that the mentions agree on, or ""."""
    asserted = [one for one in mentions if not one.denied and one.weight > Weight.LISTED]
    refused = [one for one in mentions if one.denied and one.weight > Weight.LISTED]
    if not asserted:
        return _other(refused, text, keys)
    top = max(one.weight for one in asserted)
    best = [one for one in asserted if one.weight == top]
    for before, after in pairwise(best):
        is_corrected = top >= Weight.CONCLUDED and _CORRECTS.search(text, before.end, after.start)
        if before.choice != after.choice and not is_corrected:
            return ""
    label, last = best[-1].choice, best[-1].end
    # A later conclusion, or an assertion after a mere "yes", contradicts it; so does its own denial.
    enough = Weight.NAMED if label in INTERJECTIONS else Weight.CONCLUDED
    if any(one.choice != label and one.weight >= enough and one.start > last for one in asserted):
        return ""
    enough = min(top, Weight.CONCLUDED)
    if any(
        one.choice == label and one.weight >= enough and (one.start > last or one.weight > top)
        for one in refused
    ):
        return ""
    hedge = _UNDECIDED.search(text)
    if hedge and not any(_UNDECIDED.search(key) or key in _OPEN_CHOICES for key in keys):
        return label if top == Weight.STATED and hedge.start() < last else ""
    return label


def _other(refused: list[Mention], text: str, keys: tuple[str, ...]) -> str:
    """Return the remaining one of two choices if the text denies the other outright."""
    named = {one.choice for one in refused if one.weight >= Weight.NAMED}
    is_soft = re.search(
        words("necessarily, clearly, entirely, fully, obviously, explicitly, really, sure"), text
    )
    if len(keys) != 2 or len(named) != 1 or is_soft or _UNDECIDED.search(text):
        return ""
    return next(key for key in keys if key not in named)
