"""Whether a text asserts or denies a phrase, judged by the words of the clause around it.

Input: a text in lower case, and the position of a phrase in it. Output: a boolean. The rules cover English,
and the most common negations of some other languages. Nothing is parsed: a negation in a longer clause, or
in other words ("I would be surprised if it were X"), is missed.
"""

import re

from fedsdr.data.truth.text import words

# A clause ends here, and with it the scope of a negation.
_ENDS = re.compile(
    "|".join(
        (
            r"[;:!?,()\[\]{}\n—]|\.(?!\w)|\s-\s",
            r"(?<!anything )(?<!everything )(?<!nothing )\bbut\b",
            words("so, which, because, since, therefore, thus, hence, although, though, while, whereas, yet"),
            words("before, until, unless"),
            words(
                "however, rather(?! than), instead(?! of), if, sondern, aber, pero, sino, mais, ma, mas, но"
            ),
            r"\band (?=(?:is|are|was|were|it|it's|its|the|this|that|so|has|therefore|thus|hence|i|we)\b)",
            "而是|但是|但|而|แต่|だが|하지만",
        )
    )
)
_ASIDE = re.compile(r"(\b(?:not|never|cannot)\b|n't\b),[^,.;\n]{1,40},")  # "not, however, X"

# These deny the rest of their clause.
_FAR = "|".join(
    (
        r"n't\b",
        words("not, never, cannot, hardly, barely, scarcely, nothing, none, nobody, nowhere, few"),
        words("dont, doesnt, isnt, wasnt, cant, wont, fails? to be, failed to be, stops? short of"),
        words(
            "unlikely, improbable, unlike, except(?: for)?, as opposed to, in contrast (?:to|with), "
            "to be confused with"
        ),
        words("far from, anything but, rather than, instead of, opposite of, contrary of, other than"),
        words("rul(?:e|es|ed|ing) out, exclud(?:e|es|ed|ing), eliminat(?:e|es|ed|ing), reject(?:s|ed|ing)?"),
        words("dismiss(?:es|ed|ing)?, discard(?:s|ed|ing)?, den(?:y|ies|ied|ying), refut(?:e|es|ed|ing)"),
        # "No reader would call this X" has a wider scope than "no X".
        r"\bno (?:\w+ ){1,3}(?:would|could|can|will|should|might|suggests?|indicates?|points?|shows?|"
        r"finds?)\b",
        words(
            "nicht, kein(?:e|en|er|es)?, niemals, weder, pas, jamais, non, não, nunca, не, нет, ни, niet, "
            "geen"
        ),
        words("inte, ikke, nie, nem, không, tidak, bukan, ليس, ليست, لا, غير, by no means, in no way"),
    )
)
# These deny everything that follows, including "that the sentence is X".
_DEEP = "|".join(
    (
        words("neither, nor, none of, no way, no chance, doubt(?:s|ed|ful|ing)?, disagrees? (?:that|with)"),
        words("(?:wrong|incorrect|inaccurate|mistaken|mistake|misleading|false|untrue|error) (?:to|that|if)"),
        words(
            "(?:a stretch|hard|difficult|premature|odd|impossible|unfair|unreasonable|too \\w+|"
            "overstatement|exaggeration)"
        )
        + r" to (?:call|label|say|see|describe|consider|classify|regard|view|think)\b",
    )
)
# These deny the next few words only.
_NEAR = words(
    "no, non, without, lacks?, lacking, less, zero, absence of, absent, devoid of, free (?:of|from)"
)
_NO = r"(?:\b(?:not|cannot|never|hardly)|n't)"
# These deny nothing: "not only X", "no doubt that it is X", "do not forget X".
_NOT_ONLY = "|".join(
    (
        r"\b(?:not|n't) (?:only|just|merely|simply|solely|un\w+|in\w+|without|dis\w+)\b",
        r"\b(?:no|without(?: a| any)?|little|beyond|not) (?:doubt|question)\w*",
        r"\b(?:don't|not|never) (?:forget|hesitate|fail|miss|neglect|hurt|skip|omit|ignore|overlook|"
        r"\w+ \w+ without)\b",
        r"\b(?:can|could|do|does)(?:not|n't| not) (?:deny|doubt|dispute|help|disagree)\b",
        rf"{_NO}(?: \w+)? (?:more than|too much|too many|over|exceed)\b",
        rf"{_NO} [^.;,]{{0,40}}\banything (?:but|other than)\b",
        r"\b(?:can|could)(?:not|n't| not) be (?:denied|anything)\b|\bnothing (?:but|if not)\b",
        words(
            "more or less, no less, non seulement, nicht nur, no solo, no sólo, undeniabl[ey], undoubtedly"
        ),
    )
)
_NEGATION = re.compile(f"(?P<only>{_NOT_ONLY})|(?P<deep>{_DEEP})|(?P<far>{_FAR})|(?P<near>{_NEAR})")
_FIRST_OF_PAIR = ("neither", "nor", "no", "non", "ni", "не", "нет", "not", "n't")
# A new subject with its verb begins another statement, unless the denied verb is believing or saying it.
_SUBJECT = re.compile(
    r"\b(?:the|this|that|it|its|their|overall)\b(?:\s+\w+){0,4}?\s+(?:is|are|was|were|seems?|remains?|"
    r"should|would|must)\b"
    r"|\bit's\b"
)
_BELIEF = re.compile(
    r"\s*(?:(?:really|actually|necessarily|quite|be|the) )?"
    + words(
        "think, believe, agree, say, says, said, claim, call, consider\\w*, mean, see, feel, find, sure, "
        "certain,"
        "true, case, correct, right, accurate, fair, appropriate, possible, convinced, suggest\\w*, "
        "impl(?:y|ies),"
        "indicat\\w+, shows?, means?, points? to, supports?, follow, conclude, describe\\w*, classif\\w+, "
        "label\\w*"
    )
)
# After the phrase: "X is wrong", "X does not apply".
_WRONG = words(
    "wrong, incorrect, false, inaccurate, untrue, mistaken, unsuitable, inappropriate, ruled out, excluded,"
    "eliminated, rejected, absent, out"
)
_AFTER = re.compile(
    r"['\")\]*]*\s*(?:(?!(?:because|since|as|which|that|so|but|and|if|when|or)\b)\w+\s+){0,3}?(?:"
    + "|".join(
        (
            r"(?:is|was|are|were|would be|seems?|can be|must be|to be)\s+"
            rf"(?:(?:clearly|simply|also|definitely|therefore|thus|the|a) )?{_WRONG}",
            r"(?:is|was|are|were|does|do|did|can|could|would|should|has)(?:\s+not|n't)\b"
            r"(?!\s+(?:only|just|merely|surprising|unusual))",
            r"cannot\b|(?:is|was|are) (?:never|hardly|by no means|no longer|anything but|far from)\b",
            r"(?:nicht|niet|inte|ikke|değil|नहीं)\b|(?:es|ist|is) (?:es )?(?:nicht|niet)\b",
        )
    )
    + ")"
)
_AFTER_UNSPACED = re.compile(
    r"['\"」』]*(?:的|な)?[^,.;!?\n而]{0,8}?"
    r"(?:(?:では|じゃ|とは|でも)[^,.\n]{0,6}?(?:ない|なく|なかった|ません)|않|아니|아닙|아닌|없|못하)"
)
_BEFORE_UNSPACED = re.compile(
    r"(?:不(?!仅|僅|只|但|过|過)|没有?|沒有?|非(?!常)|未|别|絕非|ไม่|มิ)[^,.;!?\n而但]{0,8}$"
)
# "Anything but X", "I prefer Y over X".
_BUT = re.compile(
    r"(?:\b(?:everything|anything|all|any)(?: \w+)? (?:but|except|other than)"
    r"|\b(?:choose|pick|prefer|favou?r|select|go with)\b[^.;\n]{0,40} over)\s+['\"(]*$"
)
_TAG = re.compile(
    r",\s*(?:(?:is|are|do|does|was|did|would)(?:n't| not)\b|right|correct|no)[^,.]{0,20}\?$"
)  # "isn't it?"
_FUNCTION_WORDS = r"(?:(?:a|an|the|in|by|at|of|from|on|called|to|until|before|actually)\s+)*"
_DIRECTLY = re.compile(rf"(?:{_FAR}|\bno)\s+{_FUNCTION_WORDS}['\"]?$")

# "2 or more" is one candidate, "X, or Y" often another name or a new clause; 1919-06-28 is no range.
_CANDIDATES_BEFORE = re.compile(
    r"\b(?:either|between)\s(?:\w+\s)?$|(?<!,)\sor\s$|\b(?:between|from) [^.,;\n]{1,20}(?:and|to) $"
    r"|(?<![\d-])\d+\s?(?:to|-|–)\s?$|(?:\b\d+[,\s]+(?:and )?){2}$"
)
_CANDIDATES_AFTER = re.compile(
    r"(?:(?:, \w+)+,?)? or\b(?! (?:more|less|so|fewer|both)\b)|\s?(?:to|-|–)\s?\d+(?![\d-])"
    r"|(?:[,\s]+(?:and )?\d+\b){2}"
)


def clause_before(text: str, start: int) -> str:
    """Return the words of the clause that stand before the place."""
    before = _ASIDE.sub(r"\1", text[max(0, start - 200) : start].rstrip("'\"(["))
    ends = [found.end() for found in _ENDS.finditer(before)]
    return before[ends[-1] :] if ends else before


def sentence_after(text: str, end: int) -> str:
    """Return what follows the place, to the end of its sentence, with the mark that ends it."""
    found = re.search(r"[.!?](?!\w)|\n|\Z", text[end:])
    return text[end : end + (found.end() if found else 0)]


def asked(text: str, end: int) -> bool:
    """Whether the sentence around the position is a question."""
    rest = _TAG.sub("", sentence_after(text, end).rstrip("'\")* "))
    return rest.endswith("?")


def left_open(text: str, start: int, end: int) -> bool:
    """Whether the phrase is one of several candidates: "either X or Y", "Y, X, Z or W", "from 5 to X"."""
    before, after = text[max(0, start - 80) : start], text[end : end + 80]
    return bool(_CANDIDATES_BEFORE.search(before) or _CANDIDATES_AFTER.match(after))


def denied(text: str, start: int, end: int) -> bool:
    """Whether the text denies the phrase from `start` to `end`; two negations cancel out."""
    before, after = clause_before(text, start), text[end : end + 80].split("\n")[0]
    if re.search(r"\b(?:non|un|anti)-$", before):
        return True
    if _BEFORE_UNSPACED.search(before) or _AFTER_UNSPACED.match(after):
        return True
    excepted = _BUT.search(text, max(0, start - 80), start)
    if excepted and not re.search(rf"{_NO} [^.;,]{{0,40}}$", text[: excepted.start()]):
        return True
    return _covers(before) != denied_after(text, end)


def denied_before(text: str, start: int) -> bool:
    """Whether a negation before the position covers the phrase that begins there."""
    return _covers(clause_before(text, start))


def denied_after(text: str, end: int) -> bool:
    """Whether the text says that the phrase ending here is wrong or does not apply."""
    return bool(_AFTER.match(text[end : end + 80].split("\n")[0]))


def called_wrong(text: str, end: int) -> bool:
    """Whether the text says that the phrase ending here is wrong."""
    return bool(re.match(rf"\s+(?:\w+ )?(?:is|was|would be|seems)\s+(?:\w+ )?{_WRONG}", text[end:]))


def denied_directly(text: str, start: int, end: int) -> bool:
    """Whether a negation directly precedes the phrase, or the text then says that it is wrong."""
    before = clause_before(text, start)
    return bool(_DIRECTLY.search(before) and _covers(before)) or denied_after(text, end)


def _covers(before: str) -> bool:
    """Whether an odd number of negations in the words before covers what follows."""
    num, last = 0, ""
    for found in _NEGATION.finditer(before):
        rest = before[found.end() :]
        covers = found["deep"] or (found["far"] and (_BELIEF.match(rest) or not _SUBJECT.search(rest)))
        if found["near"]:
            covers = len(rest.split()) <= 3 and not _SUBJECT.search(rest)
        if not covers:
            continue
        if not (num and last in _FIRST_OF_PAIR and found[0] in ("nor", "ni")):  # "neither A nor B" is one
            num += 1
        last = found[0]
    return num % 2 == 1
