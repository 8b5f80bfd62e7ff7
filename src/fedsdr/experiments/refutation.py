"""The test that could refute the method.

Does the averaged adapter of fedsdr say more that is unsupported, or less that is right, than that of fedsd or
of dual-raw? Then rectification does not help.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from fedsdr.analysis.claims import Word
from fedsdr.stats import Difference

BETTER = {"unsupported_rate": -1, "score": 1}
"""Metric -> sign of a difference that speaks for the method."""
LEVEL = 0.05
MOST_SEEDS = 1000


def verdict_of_metric(metric: str, difference: Difference | None, p: float | None) -> Word:
    """What a difference says of the claim that fedsdr is better in a metric.

    Args:
        metric: One of `BETTER`.
        difference: fedsdr's less the other's; None where it could not be tested.
        p: Its p value, corrected for the number of tests.
    """
    if difference is None or p is None or p >= LEVEL:
        return "undecided"
    return "supported" if difference.mean * BETTER[metric] > 0 else "refuted"


def overall(by_metric: Sequence[Word]) -> Word:
    """Of several metrics: refuted if one is, supported if one is and none is refuted, else undecided."""
    if "refuted" in by_metric:
        return "refuted"
    return "supported" if "supported" in by_metric else "undecided"


def effect_size(differences: Sequence[float]) -> float | None:
    """Cohen's d_z, mean over standard deviation of the seeds' differences; None where they do not spread.

    Source: Cohen, Statistical Power Analysis for the Behavioral Sciences, second edition (1988), 2.3.5.
    """
    spread = stdev(differences) if len(differences) > 1 else 0.0
    return fmean(differences) / spread if spread else None


def seeds_to_decide(differences: Sequence[float]) -> int | None:
    """The fewest seeds whose 95 % interval would exclude 0, if mean and spread of the differences stay.

    The least n with t(0.975, n - 1) / sqrt(n) < |d_z|. It is of the draw of seeds alone: where test examples
    are few, more seeds do not help. None where it is above 1,000, and where nothing spreads.
    """
    from scipy import stats

    size = effect_size(differences)
    if size is None:
        return None
    for num in range(2, MOST_SEEDS + 1):
        if float(stats.t.ppf(0.975, num - 1)) / math.sqrt(num) < abs(size):
            return num
    return None
