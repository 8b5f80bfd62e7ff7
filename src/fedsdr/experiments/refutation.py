"""The test that can refute the method.

If the averaged adapter of fedsdr makes more unsupported statements, or gives fewer correct answers, than that
of fedsd or of dual-raw, rectification does not help. The compared arms have equal settings except method and
learning rate.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from fedsdr.analysis.claims import Word
from fedsdr.experiments.grid_runs import Gain, GridRun, compare_arms, correct, ends
from fedsdr.report.sheets import NONE, Sheet, number, p_value, signed, signed_interval
from fedsdr.stats import LEVEL, Difference, t_quantile
from fedsdr.storage import Event

METHOD, OTHERS = "fedsdr", ("fedsd", "dual-raw")
BETTER = {"unsupported_rate": -1, "score": 1}
"""Metric -> sign of a difference in favour of the method."""
NAMES = {"unsupported_rate": "unsupported answers", "score": "exact score"}
MOST_SEEDS = 1000


def refutation(runs: Sequence[GridRun]) -> tuple[Sheet, list[Event]]:
    """Compare global models of fedsdr with those of fedsd and dual-raw on the same seeds and prompts.

    Returns:
        A sheet, without rows if the grid has no such arms, and a verdict for each pair of arms: {"claim",
        "verdict", "text"}.
    """
    kinds = {run.arm: (run.method, run.rest) for run in runs}
    pairs = [
        (arm, other)
        for arm, (method, rest) in kinds.items()
        for other, (against, same) in kinds.items()
        if method == METHOD and against in OTHERS and rest == same
    ]
    records: list[Event] = []
    tests: list[Difference | None] = []
    for arm, other in pairs:
        for metric in BETTER:
            if gain := compare_arms(runs, (arm, "global"), (other, "global"), metric):
                records.append({"arm": arm, "against": other, "metric": metric} | _record(gain))
                tests.append(gain.over_examples)
    correct(records)
    for record, test in zip(records, tests, strict=True):
        record["verdict"] = verdict_of_metric(record["metric"], test, record["p_holm"])
    return _sheet(records), [_verdict(records, arm, other) for arm, other in pairs]


def verdict_of_metric(metric: str, difference: Difference | None, p: float | None) -> Word:
    """Verdict of a difference on the claim that fedsdr is better in a metric.

    Args:
        metric: A key of `BETTER`.
        difference: fedsdr's minus the other's; None if it could not be tested.
        p: Its p value, corrected for the number of tests.
    """
    if difference is None or p is None or p >= LEVEL:
        return "undecided"
    return "supported" if difference.mean * BETTER[metric] > 0 else "refuted"


def overall(by_metric: Sequence[Word]) -> Word:
    """Over several metrics: refuted if any is, supported if any is and none is refuted, else undecided."""
    if "refuted" in by_metric:
        return "refuted"
    return "supported" if "supported" in by_metric else "undecided"


def effect_size(differences: Sequence[float]) -> float | None:
    """Cohen's d_z, mean over standard deviation of the seeds' differences; None without spread.

    Source: Cohen, Statistical Power Analysis for the Behavioral Sciences, second edition (1988), 2.3.5.
    """
    spread = stdev(differences) if len(differences) > 1 else 0.0
    return fmean(differences) / spread if spread else None


def seeds_to_decide(differences: Sequence[float]) -> int | None:
    """The fewest seeds whose 95 % interval would exclude 0, for unchanged mean and spread of the differences.

    The least n with t(0.975, n - 1) / sqrt(n) < |d_z|. It covers the draw of seeds only: with few test
    examples, more seeds do not help. None if n is above 1,000, or without spread.
    """
    effect = abs(effect_size(differences) or 0)
    nums = range(2, MOST_SEEDS + 1)
    return next((num for num in nums if t_quantile(num - 1) / math.sqrt(num) < effect), None)


def _record(gain: Gain) -> Event:
    return {
        "num_seeds": len(gain.by_seed),
        "difference": fmean(gain.by_seed),
        "effect_size": effect_size(gain.by_seed),
        **ends(gain.over_seeds, "_seeds"),
        **ends(gain.over_examples),
        "seeds_to_decide": seeds_to_decide(gain.by_seed),
        "p_holm": gain.over_examples and gain.over_examples.p,
    }


def _sheet(records: Sequence[Event]) -> Sheet:
    return Sheet(
        "Does rectification help? Global models, mean over domains",
        "lllrrrrrrrl",
        ("arm", "against", "metric", "seeds", "difference", "d_z", "95 % (seeds)", "95 % (seeds, examples)",
         "p (Holm)", "seeds to decide", "verdict"),
        tuple(
            (
                r["arm"],
                r["against"],
                NAMES[r["metric"]],
                str(r["num_seeds"]),
                signed(r["difference"]),
                number(r["effect_size"], 1),
                signed_interval(r["low_seeds"], r["high_seeds"]),
                signed_interval(r["low"], r["high"]),
                p_value(r["p_holm"]),
                NONE if r["seeds_to_decide"] is None else str(r["seeds_to_decide"]),
                r["verdict"],
            )
            for r in records
        ),
        tuple(records),
        note="The verdict uses the interval over seeds and examples. Holm's method corrects its p for the"
        " number of rows. Below 0.05 the sign decides between supported and refuted. d_z is the mean of the"
        " seeds' differences over their standard deviation. Seeds to decide: the fewest whose uncorrected"
        " interval over seeds would exclude 0 if mean and spread stayed as they are; half of all repetitions"
        " would need more. If that interval excludes 0 but the other does not, more test examples are"
        " needed, not more seeds.",
    )  # fmt: skip


def _verdict(records: Sequence[Event], arm: str, other: str) -> Event:
    own = [record for record in records if (record["arm"], record["against"]) == (arm, other)]
    parts = [
        f"{NAMES[r['metric']]} {signed(r['difference'])} {signed_interval(r['low'], r['high'])}{_missing(r)}"
        for r in own
    ]
    return {
        "claim": f"{arm}'s global model is significantly better than {other}'s in unsupported answers or"
        " exact score, and significantly worse in neither",
        "verdict": overall([record["verdict"] for record in own]),
        "text": "; ".join(parts) + f" ({own[0]['num_seeds']} seeds)" if own else "no common seeds",
    }


def _missing(record: Event) -> str:
    """What is missing to decide an undecided row."""
    if record["verdict"] != "undecided":
        return ""
    needed = record["seeds_to_decide"]
    if record["effect_size"] is None:
        return ", not testable with one seed or equal differences"
    if needed is None:
        return ", more than 1,000 seeds would be needed"
    if needed > record["num_seeds"]:
        return f", {needed - record['num_seeds']} more seeds would decide it over seeds, with even odds"
    if record["low"] is None or record["low"] <= 0 <= record["high"]:
        return ", significant over seeds; over examples it needs more test examples"
    return ", significant only without Holm's correction"
