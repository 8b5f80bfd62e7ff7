"""Which of several labels a text gives as its answer: words, phrases, or the letters of options.

Goes in: a text and the choices. Comes out: one choice, or none where the text names none, denies it, leaves
it open or names several. Each place that names a choice is rated by what stands around it: the answer itself
goes before a conclusion, that before a mere mention. It reads words, not meaning: synonyms of a label
("ungrammatical" for "unacceptable") are not known, and a label that the text only implies is none.
"""

import re
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache

from fedsdr.data.negation import asked, clause_before, denied, sentence_after
from fedsdr.data.text import AFTER, ANSWER_IS, BEFORE, alternatives, fold, plain, unmarked


class Weight(IntEnum):
    """How much a mention of a choice says."""

    LISTED = 0
    """In a question, or in a list of all choices."""
    WEAK = 1
    """In a concession or a condition, of a part only, or a letter in running text."""
    NAMED = 2
    CONCLUDED = 3
    """After "overall" or "therefore", or said of the text, its tone or the like."""
    STATED = 4
    """As the answer: after "the answer is", at the start, in a line or box of its own."""


@dataclass(frozen=True)
class Mention:
    """A place where a text names a choice."""

    choice: str
    """In folded form."""
    start: int
    end: int
    weight: Weight
    denied: bool


_LEAD_IN = re.compile(
    r"[\s\"'(\[{*#>-]*(?:(?:sure|certainly|of course|okay|ok|well)[!,.:]*\s+)?(?:(?:here is|here's) [^\n:]{0,60}:\s*)?"
    r"(?:[\"'{\s]*(?:label|sentiment|answer|output|prediction|class|category|response|result|a|option|choice)\W{0,3}[:=]\s*)?[\s\"'(\[{*]*"
)
_OPENERS = r"[\s\"'(\[{*=:$]*(?:(?:not|indeed|clearly|definitely|probably|most likely|likely|thus|therefore|simply|actually|still|rather|more|a|an|the|that|as|option|choice|letter|class|label|very|overall|of|is|to be|it is|it's|in fact|best|perhaps|quite|mostly|slightly|somewhat|strongly|mainly|predominantly)\b[\s\"'(\[{*:]*){0,5}"
_ANSWER = re.compile(
    rf"(?:(?:{ANSWER_IS})|\b(?:answer|label|class|classification|category|verdict|prediction|choice|option|judg?ment)\b(?! (?:that|which))"
    r"[^.;!?\n,]{0,40}?(?:\bis\b|\bwould be\b|\bshould be\b|\bmust be\b|\bremains\b|\bis:|[\"']?\s*[:=]|->|→)"
    r"|\b(?:i choose|i pick|i select|i'd choose|i would choose|i'd go with|i would go with|i'll go with|go with|labell?ed(?: as)?|classif(?:y|ied)(?: \w+){0,3} as|categori[sz]ed? as|option|choice"
    r"|i (?:would|'d) (?:label|call|classify|rate)(?: \w+){1,3}(?: as)?|選択肢|선택|选|選)"
    rf"){_OPENERS}$"
)
_TOPIC = re.compile(
    r"(?:\b(?:sentiment|tone|sentence|statement|news|headline|text|review|tweet|message|claim|hypothesis|relation(?:ship)?|stance|polarity|rating|mood|outlook|article|passage|it|this|comment|conclusion|email|post|情绪|情感|感情|감정)\b"
    r"[^.;!?\n,]{0,40}?(?:\bis\b|\bare\b|\bwas\b|\bwould be\b|\bshould be\b|\bmust be\b|\bremains\b|\bseems?(?: to be)?\b|\bappears?(?: to be)?\b|\bas\b|[:=]|是|は)"
    rf"){_OPENERS}$"
)
_CONCLUDES = re.compile(
    r"\b(?:overall|in (?:conclusion|sum|summary|short|the end|total)|on (?:the whole|balance)|all in all|to sum up|so|therefore|thus|hence|consequently|ultimately|finally|final)\b|所以|因此|总之|よって|따라서"
)
_CORRECTS = re.compile(
    r"\b(?:wait|actually|correction|sorry|no,|on second thought|instead|but|however|so|therefore|thus|hence|final|finally|overall|in conclusion|rather|ultimately|revised?|re-?read\w*|looking (?:again|closer))\b|所以|因此|但"
)
_WEAK = re.compile(
    r"\b(?:although|though|while|whereas|even (?:if|though)|if|unless|despite|in spite of|whether|compared (?:with|to)|at first|unlike|some (?:might|may|would|people|readers)"
    r"|(?:could|might|may|can) (?:also )?(?:be |have been )?(?:seen|read|taken|interpreted|construed|mistaken|viewed|considered|seem|sound|look)|sounds?|between)\b"
)
_WEAK_START = re.compile(
    r"\b(?:although|though|while|whereas|even (?:if|though)|if|unless|despite|in spite of|unlike)\b[^,.;!?\n]*$"
)
_PART = re.compile(
    r"['\"]?\s+(?:elements?|aspects?|signs?|words?|parts?|notes?|undertones?|connotations?|points?|details?|phrases?|terms?|language|at first|in parts?|territory|numbers?|charge)\b"
)
_RIGHT = re.compile(
    r"['\")\]*:.-]*\s*(?:[^.;!?\n]{0,60}?\b(?:is|are|as|seems|would be)\b[^.;!?\n]{0,15}?\b(?:correct|right|best|the answer|the (?:most )?\w+ (?:answer|choice|option|label))\b|[-:—]?\s*(?:correct|right|true|✓|✔|✅)(?!\w))"
)
_UNDECIDED = re.compile(
    r"\b(?:not|n't|im|un|in)[ -]?(?:sure|certain|clear|decided)\b(?= (?:whether|if|which|what|about the (?:label|sentiment|answer))|\W*$)"
    r"|\b(?:cannot|can't|could not|couldn't|unable to|hard to|difficult to|impossible to|not possible to|tough to|no way to)(?: \w+ly)? (?:tell|say|determine|decide|judge|know|classify|conclude|assign|infer)\b(?! (?:how|when|that))"
    r"|\b(?:cannot|can't|could not|couldn't) be (?:determined|known|decided|inferred|classified|told|judged)\b|\b(?:not enough|insufficient|too little) (?:information|context|evidence|detail)\b"
    r"|\b(?:it|that) depends\b|\bi (?:do not|don't) know\b|\bno idea\b|\b(?:either way|undecidable|undetermined|inconclusive)\b|\bambiguous\b"
)
_INTERJECTIONS = ("yes", "no", "true", "false")
_NO_ANSWER = re.compile(  # "no" as an answer, not as in "no evidence" or "no longer"
    r"['\"]|\W*$|\s*[.,;:!?)\n—]|\s+-|\s*(?:it|the|this|that|there|they|he|she|i|we|you|because|since|as|and|but|is|was|are|would)\b"
)
_JOINT = re.compile(
    r"[\s'\")*]*(?P<by>/|\||,\s*(?:or|and|nor|but)?|or|and/or|and|nor|but(?: rather)?|,?\s*rather|or rather)[\s'\"(*]*(?:a |an |the |also |option |as |instead )?['\"(]*"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_STYLE = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit)\s*\{([^{}]*)\}")


def find_label(text: str, choices: tuple[str, ...]) -> str:
    """Return the one choice that the text gives as its label; "" where there is none or several.

    Case, Unicode form, Markdown and - or _ for a blank do not matter; of choices that are the same then, the
    first is returned. In "very negative" the choice "negative" does not count if "very negative" is a choice
    as well. Where all choices are single letters, capitals are read, and "answer is X", "(X)", "X." and "X:"
    go before letters in running text. A label that is denied ("not positive", "positive is wrong") does not
    count; of exactly two choices the other is then meant, if the text names none.
    """
    spelled = _spelled(choices)
    return spelled.get(_decide(_read(text, choices), tuple(spelled)), "") if spelled else ""


def same_label(a: str, b: str) -> bool:
    """Whether two labels are spellings of one: case, Unicode form and - or _ for a blank aside."""
    return _key(a) == _key(b)


def named_labels(text: str, choices: tuple[str, ...]) -> set[str]:
    """Return the folded choices that the text states of its subject: not denied, asked about or listed."""
    mentions, _ = _read(text, choices)
    return {one.choice for one in mentions if one.weight >= Weight.NAMED and not one.denied}


def fold_label(label: str) -> str:
    """Write a label as `named_labels` does."""
    return _key(label)


def _key(label: str) -> str:
    return re.sub(r"(?<=\w)[-_\s]+(?=\w)", " ", fold(label))


def _spelled(choices: tuple[str, ...]) -> dict[str, str]:
    return {_key(choice): choice for choice in reversed(choices)}


def _read(text: str, choices: tuple[str, ...]) -> tuple[list[Mention], str]:
    """Find and rate all mentions; also the text that their places are in."""
    text = unmarked(_STYLE.sub(r"\1", plain(text)).replace("$", ""))
    text = _BOX.sub(r"answer: \1\n", text)
    keys = tuple(_spelled(choices))
    letters = all(re.fullmatch(r"[a-z]", key) for key in keys)
    lower = text.casefold() if letters else re.sub(r"[^\S\n]+", " ", text.casefold())
    places = _letter_places(text, keys) if letters and len(text) == len(lower) else _places(lower, keys)
    mentions: list[Mention] = []
    for start, end, key, weight in places:
        if weight is None:
            weight = _weigh(lower, start, end, key)
        rated = Mention(key, start, end, weight, denied(lower, start, end))
        if letters and weight and _RIGHT.match(lower, end) and not rated.denied:
            rated = replace(rated, weight=Weight.STATED)
        mentions.append(rated)
    return _unlisted(lower, _join(lower, mentions), keys), lower


@lru_cache(maxsize=256)
def _pattern(keys: tuple[str, ...]) -> re.Pattern[str]:
    r"""Match a choice; - or _ may stand for a blank, and "not possible to tell" for "it is not possible to tell"."""
    forms: dict[str, str] = {}
    for key in keys:
        forms.setdefault(key, key)
        core = re.sub(r"^(?:it is|it's|there is|this is|the|a|an) ", "", key)
        if " " in core:
            forms.setdefault(core, key)
    ranked = sorted(forms, key=len, reverse=True)
    parts = []
    for form in ranked:
        body = alternatives((form,)).replace(r"\s+", r"[\s_-]+")
        body = re.sub(r"^non\[\\s_-\]\+", r"non[\\s_-]*", body)
        before = r"(?<![\w.,/^-])" if form[0].isdigit() else BEFORE
        after = r"(?![.,]?\d|\w|\^|%)" if form[-1].isdigit() else AFTER if form[-1].isalnum() else ""
        parts.append(f"{before if form[0].isalnum() else ''}{body}{after}")
    return re.compile(
        "|".join(
            f"(?P<c{keys.index(forms[form])}_{n}>{part})"
            for n, (form, part) in enumerate(zip(ranked, parts, strict=True))
        )
    )


def _places(text: str, keys: tuple[str, ...]) -> list[tuple[int, int, str, Weight | None]]:
    found: list[tuple[int, int, str, Weight | None]] = []
    for match in _pattern(keys).finditer(text):
        key = keys[int(str(match.lastgroup)[1:].split("_")[0])]
        if key == "no" and not (
            _NO_ANSWER.match(text, match.end())
            and (_starts_sentence(text, match.start()) or not text[match.end() :].startswith(" "))
        ):
            continue
        if key == "yes" or not key.isdigit() or not re.search(r"\b(?:out )?of\s+$", text[: match.start()]):
            found.append((match.start(), match.end(), key, None))
    undecided = [
        key
        for key in keys
        if _UNDECIDED.search(key) or key in ("unknown", "uncertain", "unclear", "undetermined")
    ]
    if undecided:
        for match in _UNDECIDED.finditer(text):
            if not any(
                start < match.end() and match.start() < end and key == undecided[0]
                for start, end, key, _ in found
            ):
                found = [one for one in found if not (match.start() <= one[0] < match.end())]
                found.append((match.start(), match.end(), undecided[0], Weight.CONCLUDED))
    return sorted(found)


def _starts_sentence(text: str, start: int) -> bool:
    return bool(re.search(r"(?:^|[.!?:;\n,]|\b(?:so|is|answer|say|a))[\s\"'(*]*$", text[:start]))


def _letter_places(text: str, keys: tuple[str, ...]) -> list[tuple[int, int, str, Weight | None]]:
    """Single letters: in running text as capitals alone; where they are stated or enclosed, in any case."""
    lower = text.casefold()
    heads: list[int] = []
    found: list[tuple[int, int, str, Weight | None]] = []
    for match in re.finditer(rf"{BEFORE}(?<!')[A-Za-z](?!')(?!-\w){AFTER}", text):
        start, end = match.span()
        key = match[0].lower()
        if key not in keys:
            continue
        line = text[text.rfind("\n", 0, start) + 1 : start]
        closed = re.match(r"\s?[).:\]]|\s?[-—]\s|\s*$|\s*\n|,", text[end:])
        enclosed = bool(re.search(r"[(\[]$", text[:start]) and re.match(r"[)\]]", text[end:]))
        is_capital = match[0].isupper()
        if _ANSWER.search(lower, max(0, start - 120), start):
            is_letter = is_capital and not _is_word(text, start, end) or closed or enclosed
            weight = Weight.STATED if is_letter else None
        elif (
            not re.sub(r"[\W_]+", "", line)
            and (closed or enclosed)
            and (is_capital or enclosed or re.match(r"\)|[\s.\]]*$", text[end:]))
        ):
            weight = Weight.STATED
            heads.append(len(found))
        elif enclosed:
            weight = Weight.NAMED
        elif is_capital and not _is_word(text, start, end):
            weight = (
                Weight.NAMED if re.match(r"\W{0,2}\s*(?:is|are|was)\b|[,.)]", text[end:]) else Weight.WEAK
            )
        else:
            continue
        if weight:
            found.append((start, end, key, weight))
    return _without_options(text, found, heads, keys)


_NO_NOUN = re.compile(
    r"\s+(?:is|are|was|were|and|or|because|since|as|would|seems|but|not|which|here|though|fits)\b"
)
_NAMED_BY_LETTER = re.compile(
    r"\b(?:vitamins?|hepatitis|types?|groups?|class|grade|plan|figure|part|section|point|appendix|phase|dr|mr)\.?\s+$",
    re.IGNORECASE,
)


def _is_word(text: str, start: int, end: int) -> bool:
    """Whether a capital is the article, the pronoun, an initial or part of a name such as "vitamin C"."""
    after = text[end:]
    if text[start] == "I" and not re.match(r"\s*[.)\]:,]", after):
        return True
    if text[start] == "A" and re.match(r"\s+[a-z]", after) and not _NO_NOUN.match(after):
        return True
    return bool(_NAMED_BY_LETTER.search(text[:start]) or re.match(r"\.\s?(?:[A-Z]\.|[a-z])", after))


def _without_options(
    text: str, found: list[tuple[int, int, str, Weight | None]], heads: list[int], keys: tuple[str, ...]
) -> list[tuple[int, int, str, Weight | None]]:
    """Options repeated as a list (A. ..., B. ..., C. ...) are no answer, but for what a line says of its own."""
    heading = [found[place][2] for place in heads]
    if len(set(heading)) < 2:
        return found
    is_list = heading[0] == sorted(keys)[0] and heading[1] == sorted(keys)[1]
    for place in heads[0 if is_list else 1 :]:
        start, end, key, _ = found[place]
        line = text[end:].split("\n")[0].casefold()
        weight: Weight | None = Weight.LISTED
        if re.match(
            r"[\s).:\]\"'-]*(?:[^.]{0,80}(?:[-:—(]|\bis|->)\s*)?(?:correct|right|yes|✓|✔|✅|this is (?:the )?(?:correct|right))(?!\w)",
            line,
        ):
            weight = Weight.STATED
        found[place] = (start, end, key, weight)
    return found


def _weigh(text: str, start: int, end: int, key: str) -> Weight:
    """Rate a mention by what stands around it."""
    if asked(text, end):
        return Weight.LISTED
    clause = clause_before(text, start)
    window = text[max(0, start - 120) : start]
    after = text[end:]
    line = text[text.rfind("\n", 0, start) + 1 : start]
    at_start = _LEAD_IN.fullmatch(text[:start])
    closes = re.match(r"[\"')\]}*]*\s*(?:[.,:;!)\n—}]|-\s|\(|$)", after)
    if _ANSWER.search(window) and not _WEAK_START.search(window.rsplit("\n", 1)[-1]):
        return Weight.STATED
    if closes and (at_start or (_LEAD_IN.fullmatch(line) and re.match(r"[\"')\]}.*!]*\s*(?:\n|$)", after))):
        return Weight.STATED
    if (
        at_start
        and key in _INTERJECTIONS
        and re.match(r"\s+(?:it|the|this|that|there|they|he|she|i|we|you)\b", after)
    ):
        return Weight.STATED
    if _RIGHT.match(after) and re.match(r"['\")*]*\s*(?:is|would be|seems)\b", after):
        return Weight.STATED
    if _PART.match(after) or _WEAK.search(clause) or _WEAK_START.search(window):
        return Weight.WEAK
    if key == "true" and re.match(r" that\b", after):
        return Weight.WEAK
    sentence = re.split(r"[.!?\n](?=\s|$)", window)[-1]
    if (
        _CONCLUDES.search(sentence)
        or _CONCLUDES.search(sentence_after(text, end)[:40])
        or _TOPIC.search(window)
    ):
        return Weight.CONCLUDED
    return Weight.NAMED


def _join(text: str, mentions: list[Mention]) -> list[Mention]:
    """Let mentions that are joined, as by "or", weigh the same, and be denied together."""
    new = list(mentions)
    for place in range(1, len(new)):
        before, after = new[place - 1], new[place]
        joint = _JOINT.fullmatch(text, before.end, after.start)
        if not joint or Weight.LISTED in (before.weight, after.weight):
            continue
        by = joint["by"].strip(", ")
        weight = max(before.weight, after.weight)
        if by in ("or", "and", "nor", "/", "|", "and/or"):
            new[place - 1] = replace(before, weight=weight)
            new[place] = replace(after, weight=weight, denied=before.denied)
        elif by.startswith(("but", "rather", "or rather")) or before.denied:
            new[place] = replace(after, weight=weight, denied=False)
        else:
            new[place] = replace(after, weight=weight)
    return new


def _unlisted(text: str, mentions: list[Mention], keys: tuple[str, ...]) -> list[Mention]:
    """Take the weight off a list of all choices, such as "positive, negative or neutral"."""
    new = list(mentions)
    for first in range(len(new)):
        last = first
        while last + 1 < len(new) and _JOINT.fullmatch(text, new[last].end, new[last + 1].start):
            last += 1
        run = new[first : last + 1]
        if len({one.choice for one in run}) == len(keys) > 1 and not any(one.denied for one in run):
            by = text[run[-2].end : run[-1].start]
            if re.search(r"\bor\b|/|\|", by) or len(keys) > 2:
                new[first : last + 1] = [replace(one, weight=Weight.LISTED) for one in run]
    return new


def _decide(read: tuple[list[Mention], str], keys: tuple[str, ...]) -> str:
    """Return the choice that the mentions come to, or ""."""
    mentions, text = read
    asserted = [one for one in mentions if not one.denied and one.weight > Weight.LISTED]
    refused = [one for one in mentions if one.denied and one.weight > Weight.LISTED]
    if not asserted:
        return _other(refused, text, keys)
    top = max(one.weight for one in asserted)
    best = [one for one in asserted if one.weight == top]
    label = best[-1].choice
    for before, after in zip(best, best[1:], strict=False):
        if before.choice != after.choice and (
            top < Weight.CONCLUDED or not _CORRECTS.search(text, before.end, after.start)
        ):
            return ""
    last = max(one.end for one in best if one.choice == label)
    rivals = [one for one in asserted if one.choice != label]
    if any(one.weight >= Weight.CONCLUDED and one.start > last for one in rivals):
        return ""
    if label in _INTERJECTIONS and any(one.weight >= Weight.NAMED and one.start > last for one in rivals):
        return ""
    if any(
        one.choice == label
        and one.weight >= min(top, Weight.CONCLUDED)
        and (one.start > last or one.weight > top)
        for one in refused
    ):
        return ""
    if not any(
        _UNDECIDED.search(key) or key in ("unknown", "ambiguous", "unclear", "maybe") for key in keys
    ) and (hedge := _UNDECIDED.search(text)):
        return label if top == Weight.STATED and hedge.start() < last else ""
    return label


def _other(refused: list[Mention], text: str, keys: tuple[str, ...]) -> str:
    """Of two choices, the one that is left when the text denies the other outright."""
    named = {one.choice for one in refused if one.weight >= Weight.NAMED}
    if len(keys) != 2 or len(named) != 1 or _UNDECIDED.search(text):
        return ""
    soft = re.search(r"\b(?:necessarily|clearly|entirely|fully|obviously|explicitly|really|sure)\b", text)
    return "" if soft else next(key for key in keys if key not in named)
