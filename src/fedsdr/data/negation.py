"""Whether a text says or denies what it names at some place: negation, hedges, questions, by their words.

Goes in: a text and the place of a phrase in it. Comes out: yes or no. It reads the words of the clause around
the phrase, in English and by the commonest negations of some other languages; it does not parse.
"""

import re
# A clause ends here. A comma that parts "not, however, X" is taken out before.
_ENDS = re.compile(
    r"[;:!?,()\[\]{}\n—]|\.(?![\w])|\s-\s|(?<!anything )(?<!nothing )\bbut\b|\b(?:so|which|because|since|therefore|thus|hence|although|though"
    r"|while|whereas|yet|however|rather(?! than)|instead(?! of)|sondern|aber|pero|sino|mais|ma|mas|но)\b"
    r"|\band (?=(?:is|are|was|were|it|it's|its|the|this|that|so|has|therefore|thus|hence|i|we)\b)"
    r"|而是|但是|但|而|แต่|だが|하지만"
)
_ASIDE = re.compile(r"(\b(?:not|never|cannot)\b|n't\b),[^,.;\n]{1,40},")

# Far: denies the rest of its clause. Near: denies the next few words.
_FAR = (
    r"\b(?:not|never|cannot|hardly|barely|scarcely|nobody|nowhere|neither|nor)\b|n't\b|\b(?:dont|doesnt|isnt|wasnt|cant|wont)\b"
    r"|\b(?:far from|anything but|rather than|instead of|opposite of|contrary of|other than|rules? out|ruled out|fails? to be|failed to be"
    r"|stops? short of|excludes?|eliminates?|reject(?:s|ed)?|den(?:y|ies|ied)|doubt(?:s|ed|ful)?|disagrees? (?:that|with)"
    r"|(?:wrong|incorrect|inaccurate|mistaken|mistake|misleading|false|untrue|error) (?:to|that|if)|refut(?:e|es|ed)|by no means|in no way"
    r"|nicht|kein(?:e|en|er|es)?|niemals|weder|pas|jamais|non|não|nunca|не|нет|ни|niet|geen|inte|ikke|nie|nem|không|tidak|bukan|ليس|ليست|لا|غير)\b"
)
_NEAR = r"\b(?:no|non|without|lacks?|lacking|less|zero|absence of|absent|devoid of|free (?:of|from))\b"
_SAYS_MORE = (  # "not only X": X holds. "No doubt that X".
    r"\b(?:not|n't) (?:only|just|merely|simply|solely|un\w+|in\w+|without|dis\w+)\b|\b(?:no|without(?: a| any)?|little|beyond|not) (?:doubt|question)\w*"
    r"|\b(?:don't|not|never) (?:forget|hesitate|fail|miss|neglect|hurt)\b|\b(?:can|could|do|does)(?:not|n't| not) (?:deny|doubt|dispute|help|disagree)\b"
    r"|\b(?:can|could)(?:not|n't| not) be (?:denied|anything)\b|\bnothing (?:but|if not)\b|\bnon seulement\b|\bnicht nur\b|\bno (?:longer in doubt|solo|sólo)\b"
    r"|\b(?:undeniabl|undoubted)\w+"
)
_NEGATION = re.compile(f"(?P<more>{_SAYS_MORE})|(?P<far>{_FAR})|(?P<near>{_NEAR})")
# A new subject with its verb begins another statement, unless the negation is of believing or saying it.
_SUBJECT = re.compile(
    r"\b(?:the|this|that|it|its|their|overall)\b(?:\s+\w+){0,4}?\s+(?:is|are|was|were|seems?|remains?|should|would|must)\b|\bit's\b"
)
_BELIEF = re.compile(
    r"\s*(?:really |actually |necessarily |quite |be |the )?(?:think|believe|agree|say|says|said|claim|call|consider\w*|mean|see|feel|find|sure|certain"
    r"|true|case|correct|right|accurate|fair|appropriate|possible|convinced|suggest|imply|implies|follow|conclude|describe\w*|classif\w+|label\w*)\b"
)
_WRONG = r"(?:wrong|incorrect|false|inaccurate|untrue|mistaken|unsuitable|inappropriate|ruled out|excluded|eliminated|rejected|absent|out of the question)"
_DENIED_AFTER = re.compile(
    rf"['\")\]*]*\s*(?:\w+\s+){{0,3}}?(?:(?:is|was|are|were|would be|seems?|can be|must be|to be)\s+(?:clearly |simply |also |definitely |therefore |thus )?{_WRONG}\b"
    r"|(?:is|was|are|were|does|do|did|can|could|would|should|has)(?:\s+not|n't)\b(?!\s+(?:only|just|merely|surprising|unusual))"
    r"|cannot\b|(?:is|was|are) (?:never|hardly|by no means|no longer|anything but|far from|not)\b|(?:nicht|niet|inte|ikke|değil|नहीं)\b"
    r"|(?:es|ist|is) (?:es )?(?:nicht|niet)\b)"
)
_DENIED_AFTER_UNSPACED = re.compile(
    r"['\"」』]*(?:的|な)?[^,.;!?\n而]{0,8}?(?:(?:では|じゃ|とは|でも)[^,.\n]{0,6}?(?:ない|なく|なかった|ません)|않|아니|아닙|아닌|없|못하)"
)
_DENIED_BEFORE_UNSPACED = re.compile(
    r"(?:不(?!仅|僅|只|但|过|過)|没有?|沒有?|非(?!常)|未|别|絕非|ไม่|มิ)[^,.;!?\n而但]{0,8}$"
)


def clause_before(text: str, start: int) -> str:
    """Return the words of the clause that stand before the place."""
    before = _ASIDE.sub(r"\1", text[max(0, start - 200) : start])
    cut = 0
    for found in _ENDS.finditer(before):
        cut = found.end()
    return before[cut:]


def sentence_after(text: str, end: int) -> str:
    """Return what follows the place, to the end of its sentence, with the mark that ends it."""
    found = re.search(r"[.!?](?!\w)|\n|\Z", text[end:])
    return text[end : end + (found.end() if found else 0)]


def denied(text: str, start: int, end: int) -> bool:
    """Whether the text denies the phrase from `start` to `end`.

    Args:
        text: In lower case.
        start: Place of the first character of the phrase.
        end: Place after its last.
    """
    before, after = clause_before(text, start), text[end : end + 80]
    if re.search(r"(?:\bnon|\bun|\banti)-$", before):
        return True
    if _DENIED_BEFORE_UNSPACED.search(before) or _DENIED_AFTER_UNSPACED.match(after):
        return True
    return _denied_before(before) != bool(_DENIED_AFTER.match(after.split("\n")[0]))


def asked(text: str, end: int) -> bool:
    """Whether the sentence around the place is a question."""
    return sentence_after(text, end).rstrip("'\")* ").endswith("?")


def adjacent_denied(text: str, start: int, end: int) -> bool:
    """Whether the negation stands directly at the phrase, or after it: what denies it whatever the sentence says."""
    before = clause_before(text, start)
    directly = re.search(
        rf"(?:{_FAR}|\bno)\s+(?:a |an |the |in |by |at |of |from |on |called |to |until |before |actually )*['\"]?$",
        before,
    )
    return bool(directly and _denied_before(before)) or bool(
        _DENIED_AFTER.match(text[end : end + 80].split("\n")[0])
    )


def _denied_before(before: str) -> bool:
    """Whether negations in the words before hold for what follows; two of them cancel out."""
    num, last = 0, ""
    for found in _NEGATION.finditer(before):
        rest = before[found.end() :]
        if found["more"]:
            continue
        if found["near"] and len(rest.split()) > 3:
            continue
        if (found["near"] or not _BELIEF.match(rest)) and _SUBJECT.search(rest):
            continue
        pair = found[0] == "nor" or (
            last in ("neither", "nor", "no", "non", "ni", "не", "нет") and found[0] in ("nor", "ni")
        )
        if not (pair and num):
            num += 1
        last = found[0]
    return num % 2 == 1
