"""The rewrite paradox, measured: rewritings omit facts, add unsupported claims, grow and pad.

Input: pairs of an example (c, x, y) and another text y~ for its response. Output: one record for each kind,
domain and checker, with a 95 % interval that covers the draw of the examples.

- omission: y~ does not entail y; exact checker: y~ loses the label, final answer, a fact or a test.
- unsupported: (c, x, y) does not entail y~; exact checker: see `data.checks.unsupported`.
- length_ratio: mean words of y~ over mean words of y. words: mean words of y~. filler_rate: fillers per 100
  words. redundancy: share of repeated 3-grams. The last two are means over texts.

Checkers make errors. The same records for true responses, (y, y), and true paraphrases are false positives.

Paper: FedSDR, section 3 (about 47 % of rewritings do not entail the true response); the definitions are
our own (docs/paper_map.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsdr.analysis.claims import over_all_domains
from fedsdr.data.checks import filler_rate, is_checkable, lost, num_words, redundancy, unsupported
from fedsdr.data.examples import Example
from fedsdr.evaluate.entailment import Checker
from fedsdr.progress import within
from fedsdr.stats import difference_interval, half_sample_interval, wilson
from fedsdr.storage import Event

Pair = tuple[Example, str]
Statistic = Callable[[NDArray[np.int64]], float]
EXACT = "exact"
REWRITING, TRUE, PARAPHRASE = "rewriting", "true response", "true paraphrase"
"""Label for the text of a pair; callers use other labels for models' answers."""
MINUS = f" minus {TRUE}"
STYLE = ("length_ratio", "filler_rate", "redundancy")
"""Measures that increase if texts are padded."""
LONG = 2.0
"""Length ratio from which a text is reported as too long."""
NUM_SHOWN = 600
"""Maximum number of characters of a shown text."""


@dataclass(frozen=True)
class Verdicts:
    """One checker's verdicts on pairs."""

    checker: str
    omits: Sequence[bool | None]
    """None: no verdict, or, for the exact checker, no ground truth to lose."""
    unsupported: Sequence[bool | None]
    lost: Sequence[tuple[str, ...]]
    """Lost kinds of ground truth; only from the exact checker, otherwise empty."""


def check(pairs: Sequence[Pair], checker: Checker | None = None, code_timeout: float = 5.0) -> Verdicts:
    """Check every pair, exactly or by an entailment checker.

    Args:
        pairs: Examples and the texts to check.
        checker: None: the exact checks of `data.checks`.
        code_timeout: Time limit in seconds for the code in a text.
    """
    if checker is None:
        missing = [lost(example, text, code_timeout) for example, text in pairs]
        return Verdicts(
            EXACT,
            [
                bool(kinds) if is_checkable(example) else None
                for (example, _), kinds in zip(pairs, missing, strict=True)
            ],
            [unsupported(example, text) for example, text in pairs],
            missing,
        )
    with within(f"checking by {checker.name}"):
        omits = checker.entails([(text, example.response) for example, text in pairs])
        adds = checker.entails([(_given(example), text) for example, text in pairs])
    return Verdicts(checker.name, _negated(omits), _negated(adds), [()] * len(pairs))


def paradox_records(pairs: Sequence[Pair], of: str, verdicts: Verdicts) -> list[Event]:
    """Shares of omissions and unsupported texts, with Wilson's intervals; for the exact checker also style.

    Args:
        pairs: Examples and texts.
        of: Label for the texts, such as "rewriting", "true response" or "global answer".
        verdicts: From `check`.

    Returns:
        Records {"checker", "of", "domain", "kind", "value", "low", "high", "num", "num_unreadable"}, by
        domain and, if there are several, for "all", pooled over examples. A share over nothing has no record.
    """
    records: list[Event] = []
    for domain, rows in _groups(pairs).items():
        where = {"checker": verdicts.checker, "of": of, "domain": domain}
        for kind, said in (("omission", verdicts.omits), ("unsupported", verdicts.unsupported)):
            known = [said[row] for row in rows if said[row] is not None]
            num_unreadable = 0 if verdicts.checker == EXACT else len(rows) - len(known)
            share = sum(map(bool, known)) / len(known) if known else None
            low, high = wilson(share, len(known)) if share is not None else (None, None)
            if known or num_unreadable:
                records.append(
                    where
                    | {"kind": kind, "value": share, "low": low, "high": high}
                    | {"num": len(known), "num_unreadable": num_unreadable}
                )
        if verdicts.checker == EXACT:
            style = _style([pairs[row] for row in rows])
            records += [where | _estimate(kind, style[kind], len(rows)) for kind in ("words", *STYLE)]
    return records


def style_differences(pairs: Sequence[Pair], of: str) -> list[Event]:
    """Length ratio, fillers and redundancy of the texts minus those of their true responses, paired.

    Returns:
        Records as in `paradox_records`, with `of` = "<of> minus true response".
    """
    records: list[Event] = []
    for domain, rows in _groups(pairs).items():
        new = _style([pairs[row] for row in rows])
        true = _style([(pairs[row][0], pairs[row][0].response) for row in rows])
        where = {"checker": EXACT, "of": of + MINUS, "domain": domain}
        records += [where | _estimate(kind, _less(new[kind], true[kind]), len(rows)) for kind in STYLE]
    return records


def holds(records: Sequence[Event]) -> list[Event]:
    """Decide which conditions of the paradox the rewritings meet, over all domains.

    For each checker: the rate of unsupported rewritings exceeds the checker's false-positive rate, on true
    paraphrases and on the true responses themselves; the interval of each difference (Newcombe) excludes 0.
    The paraphrases belong to other examples, so the first comparison is rough. And length ratio, fillers and
    redundancy exceed those of the true responses; the interval of the paired difference excludes 0.

    Args:
        records: `paradox_records` of rewritings, of true responses and of true paraphrases, and
            `style_differences` of rewritings.

    Returns:
        Records {"kind", "checker", "against", "value", "other", "difference", "low", "high", "num",
        "num_other", "holds"}: the rewritings' value, and the value compared with. A checker without verdicts
        on either side has no record.
    """
    found = {(r["checker"], r["of"], r["kind"]): r for r in over_all_domains(records)}
    conditions: list[Event] = []
    for checker in dict.fromkeys(checker for checker, _, _ in found):
        for against in (PARAPHRASE, TRUE):
            mine, alarms = (found.get((checker, of, "unsupported")) for of in (REWRITING, against))
            if mine and alarms and mine["num"] and alarms["num"]:
                ends = difference_interval(mine["value"], mine["num"], alarms["value"], alarms["num"])
                conditions.append(_condition(mine, against, alarms["value"], alarms["num"], *ends))
    for kind in STYLE:
        mine, gain = found.get((EXACT, REWRITING, kind)), found.get((EXACT, REWRITING + MINUS, kind))
        if mine and gain and gain["low"] is not None:
            other = mine["value"] - gain["value"]
            conditions.append(_condition(mine, TRUE, other, mine["num"], gain["low"], gain["high"]))
    return conditions


def worst(pairs: Sequence[Pair], of: str, verdicts: Verdicts, num: int) -> list[Event]:
    """Select the pairs with the most faults, taking domains in rotation.

    Args:
        pairs: Examples and texts.
        of: Label for the texts.
        verdicts: From `check`.
        num: Maximum number. Pairs without faults are left out.

    Returns:
        Records {"checker", "of", "domain", "why", "instruction", "input", "response", "text"}, where `why`
        lists the faults, and texts are truncated to 600 characters.
    """
    reasons = [_reasons(pair, verdicts, row) for row, pair in enumerate(pairs)]
    ranked: list[tuple[int, str, int]] = []
    for domain, places in _groups(pairs).items():
        rows = [row for row in places if reasons[row] and pairs[row][0].domain == domain]
        rows.sort(key=lambda row: (-len(reasons[row]), -_length_ratio(pairs[row])))
        ranked += [(place, domain, row) for place, row in enumerate(rows)]
    return [
        {
            "checker": verdicts.checker,
            "of": of,
            "domain": domain,
            "why": ", ".join(reasons[row]),
            "instruction": _cut(pairs[row][0].instruction),
            "input": _cut(pairs[row][0].context),
            "response": _cut(pairs[row][0].response),
            "text": _cut(pairs[row][1]),
        }
        for _, domain, row in sorted(ranked)[:num]
    ]


def _given(example: Example) -> str:
    """Premise for supported claims: (c, x, y) and earlier turns, the latest exchange first.

    Long premises are cut at the end, so y comes first.
    """
    earlier = (text for exchange in reversed(example.history) for text in exchange)
    parts = (example.response, example.instruction, example.context, example.system, *earlier)
    return "\n".join(part for part in parts if part)


def _negated(verdicts: Sequence[bool | None]) -> list[bool | None]:
    return [None if verdict is None else not verdict for verdict in verdicts]


def _groups(pairs: Sequence[Pair]) -> dict[str, list[int]]:
    """Domain -> indices of its pairs; if there are several, all pairs under "all" at the end."""
    groups: dict[str, list[int]] = {}
    for row, (example, _) in sorted(enumerate(pairs), key=lambda item: item[1][0].domain):
        groups.setdefault(example.domain, []).append(row)
    return groups | {"all": list(range(len(pairs)))} if len(groups) > 1 else groups


def _style(pairs: Sequence[Pair]) -> dict[str, Statistic]:
    """Kind -> its value over some of the pairs, given by their indices."""
    words = np.array([num_words(text) for _, text in pairs])
    true_words = np.array([num_words(example.response) for example, _ in pairs])
    fillers = np.array([filler_rate(text) for _, text in pairs])
    repeats = np.array([redundancy(text) for _, text in pairs])
    return {
        "words": lambda places: float(words[places].mean()),
        "length_ratio": lambda places: float(words[places].sum() / max(1, true_words[places].sum())),
        "filler_rate": lambda places: float(fillers[places].mean()),
        "redundancy": lambda places: float(repeats[places].mean()),
    }


def _less(one: Statistic, other: Statistic) -> Statistic:
    return lambda places: one(places) - other(places)


def _estimate(kind: str, statistic: Statistic, num: int) -> Event:
    low, high = half_sample_interval(statistic, num) or (None, None)
    value = statistic(np.arange(num))
    return {"kind": kind, "value": value, "low": low, "high": high, "num": num, "num_unreadable": 0}


def _condition(mine: Event, against: str, other: float, num_other: int, low: float, high: float) -> Event:
    return {
        "kind": mine["kind"],
        "checker": mine["checker"],
        "against": against,
        "value": mine["value"],
        "other": other,
        "difference": mine["value"] - other,
        "low": low,
        "high": high,
        "num": mine["num"],
        "num_other": num_other,
        "holds": low > 0,
    }


def _reasons(pair: Pair, verdicts: Verdicts, row: int) -> list[str]:
    reasons = [f"lost {kind}" for kind in verdicts.lost[row]]
    others = {
        "does not entail the true response": verdicts.omits[row] and not reasons,
        "unsupported": verdicts.unsupported[row],
        "at least twice as long": _length_ratio(pair) >= LONG,
    }
    return reasons + [reason for reason, is_true in others.items() if is_true]


def _length_ratio(pair: Pair) -> float:
    return num_words(pair[1]) / max(1, num_words(pair[0].response))


def _cut(text: str) -> str:
    return text if len(text) <= NUM_SHOWN else f"{text[:NUM_SHOWN].rstrip()} ..."
