"""Whether rewriting is likely to help, by a rule on quantities known before training; the rule's accuracy.

Input: the findings of `experiments.probe` at each client, and to judge the rule, the outcomes of trainings.
Output: advice for each client, or how well each quantity predicts the outcomes.

The rule: a rewriting suits its example if it passes the checks and keeps the ground truth, is likelier under
the base model than the true response (log p per token), and has at most twice as many words. If the 95 %
interval (Wilson) of the share of suited examples is below one half, train on the true responses; otherwise
undecided. It never advises to rewrite: in no case that we trained did rewriting gain on true responses
(docs/probe.md). Until 30 November 2026 it did where the interval lies above one half, and was always wrong.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from sklearn.metrics import roc_auc_score

from fedsdr.data.files import Row
from fedsdr.errors import UserError
from fedsdr.stats import t_quantile, wilson
from fedsdr.storage import Event

PLAIN = "passed"
"""The plain rule: rewrite if most rewritings pass."""
FEATURES = {
    PLAIN: 1,
    "suited": 1,
    "loss_change": -1,
    "length_ratio": -1,
    "js_change": -1,
    "gradient_change": 1,
}
"""Quantity known before training -> 1 if more of it should favour rewriting, -1 if less should."""
MOST_WORDS = 2.0
"""Length ratio from which a rewriting does not suit its example."""
LEAST_CASES = 30

Case = Event
"""{"domain", "outcomes": gain of rewriting over true responses by seed, and any of `FEATURES`}."""


def advice(num_suited: int, num: int) -> str:
    """Advice for a client, "raw" or "undecided", by its number of suited examples."""
    return "raw" if wilson(num_suited / num, num)[1] < 0.5 else "undecided"


def read_cases(rows: Sequence[Row]) -> list[Case]:
    """Validate the cases of a file.

    Raises:
        UserError: States file and line: a case lacks its domain or outcomes, or a value is not a number.
    """
    for place, row in rows:
        if not isinstance(row.get("domain"), str):
            raise UserError(
                f"{place}: domain = {row.get('domain')!r}; expected the name of the case's domain"
            )
        outcomes = row.get("outcomes")
        if not isinstance(outcomes, list) or not outcomes or not all(map(_is_number, outcomes)):
            raise UserError(
                f"{place}: outcomes = {outcomes!r}; expected a list of numbers: for each seed, the gain of"
                " rewriting over true responses"
            )
        for name in FEATURES:
            if row.get(name) is not None and not _is_number(row[name]):
                raise UserError(f"{place}: {name} = {row[name]!r}; expected a number, or none")
    return [row for _, row in rows]


def evaluate_rule(cases: Sequence[Case]) -> Event:
    """How well each feature predicts the cases in which rewriting helps, those with a mean outcome above 0.

    - auc: share of pairs of a case that gained and one that did not that the feature ranks correctly, with
    ties counted half; if the feature's sign in `FEATURES` is -1, its negative is used.
    - low, high: 95 % interval by the jackknife over whole domains, since cases of one domain are similar: auc
    -+ t sqrt((G - 1) / G sum_g (auc_g - mean)^2), auc_g without domain g of G, t with G - 1 degrees of
    freedom (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11). None if no such pair
    is left without some domain.
    - difference: auc minus that of `PLAIN` on the same cases, with its interval likewise, but at the level
    1 - 5 % / 5 (Bonferroni), since one of five features is selected by it.
    - held_out: share of cases judged correctly by the threshold that is best on all other domains.

    Returns:
        "records", one for each feature with at least one case of either kind; "taken": the plain rule or,
        with at least `LEAST_CASES` cases, the best feature that is significantly better (difference's
        interval above 0); "advised": the number of cases with the advice "raw", and the share that lost by
        rewriting;
        "notes".

    Raises:
        UserError: Rewriting helped in all cases, or in none.
    """
    paid = [_paid(case) for case in cases]
    if len(set(paid)) < 2:
        kind = "all" if paid and paid[0] else "none"
        low, high = wilson(float(paid[0]), len(paid)) if paid else (0.0, 1.0)
        raise UserError(
            f"rewriting helped in {kind} of the {len(cases)} cases (share that gained: {low:.2f} to"
            f" {high:.2f}, if cases are independent); judging a quantity requires both kinds"
        )
    records = [_judged(name, cases) for name in FEATURES]
    records = [record for record in records if record["auc"] is not None]
    is_enough = len(cases) >= LEAST_CASES
    better = [record for record in records if is_enough and (record["difference_low"] or 0) > 0]
    right = [not _paid(case) for case in cases if case.get("advice") == "raw"]
    notes = [f"Rewriting helped in {sum(paid)} of {len(cases)} cases of {len(_domains(cases))} domains."]
    if not is_enough:
        notes.append(f"Fewer than {LEAST_CASES} cases: too few to validate a rule.")
    return {
        "records": records,
        "taken": max(better, key=lambda record: record["auc"])["feature"] if better else PLAIN,
        "advised": {"num": len(right), "right": sum(right) / len(right) if right else None},
        "notes": notes,
    }


def _judged(name: str, cases: Sequence[Case]) -> Event:
    known = [case for case in cases if case.get(name) is not None]
    record: Event = {"feature": name, "num": len(known), "auc": _auc(name, known)}
    record["low"], record["high"] = _jackknife(lambda some: _auc(name, some), known, 0.0)
    both = [case for case in known if case.get(PLAIN) is not None]
    record["difference"] = _gain(name, both)
    ends = _jackknife(lambda some: _gain(name, some), both, -1.0, len(FEATURES) - 1)
    record["difference_low"], record["difference_high"] = ends
    record["held_out"] = _held_out(name, known)
    return record


def _auc(name: str, cases: Sequence[Case]) -> float | None:
    paid = [_paid(case) for case in cases]
    if len(set(paid)) < 2:
        return None
    return float(roc_auc_score(paid, [FEATURES[name] * case[name] for case in cases]))


def _gain(name: str, cases: Sequence[Case]) -> float | None:
    own, plain = _auc(name, cases), _auc(PLAIN, cases)
    return None if own is None or plain is None else own - plain


def _jackknife(
    statistic: Callable[[Sequence[Case]], float | None],
    cases: Sequence[Case],
    least: float,
    num_tests: int = 1,
) -> tuple[float, float] | tuple[None, None]:
    """Ends of the 1 - 5 % / num_tests interval of a statistic between `least` and 1."""
    domains, whole = _domains(cases), statistic(cases)
    without = [statistic([case for case in cases if case["domain"] != name]) for name in domains]
    values = [value for value in without if value is not None]
    if whole is None or len(values) < max(2, len(domains)):
        return None, None
    num = len(values)
    half = t_quantile(num - 1, num_tests) * math.sqrt((num - 1) * float(np.var(values)))
    return max(least, whole - half), min(1.0, whole + half)


def _held_out(name: str, cases: Sequence[Case]) -> float | None:
    """Share judged correctly, each domain by the threshold of the others; None for a single domain."""
    right = []
    for domain in _domains(cases):
        others = [case for case in cases if case["domain"] != domain]
        if not others:
            return None
        threshold = _threshold(name, others)
        own = [case for case in cases if case["domain"] == domain]
        right += [(FEATURES[name] * case[name] > threshold) == _paid(case) for case in own]
    return sum(right) / len(right) if right else None


def _threshold(name: str, cases: Sequence[Case]) -> float:
    """The threshold that judges most cases correctly: below all values, or midway between two neighbours."""
    pairs = sorted((FEATURES[name] * case[name], _paid(case)) for case in cases)
    values = sorted({value for value, _ in pairs})
    middles = [(a + b) / 2 for a, b in pairwise(values)]
    return max(
        [-math.inf, *middles, math.inf],
        key=lambda threshold: sum((value > threshold) == paid for value, paid in pairs),
    )


def _domains(cases: Sequence[Case]) -> list[str]:
    return sorted({case["domain"] for case in cases})


def _paid(case: Case) -> bool:
    return sum(case["outcomes"]) > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
