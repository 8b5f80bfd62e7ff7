"""Intervals for shares of right answers. They cover the draw of the test examples, not other seeds."""

import math
from collections.abc import Sequence

Z = 1.959964
"""97.5 % point of the standard normal distribution: two-sided 95 % intervals."""


def wilson(share: float, num: float) -> tuple[float, float]:
    """95 % interval of a share p of n independent yes-or-no outcomes.

    (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)

    The ends are the shares whose normal test at level 5 % just does not reject p, so the interval
    stays within [0, 1] and has a width even where p is 0 or 1.

    Args:
        share: p, in [0, 1].
        num: n, at least 1.

    Paper: Wilson, "Probable inference, the law of succession, and statistical inference", Journal
    of the American Statistical Association 22 (1927), 209-212.
    """
    squeeze = 1 + Z**2 / num
    middle = (share + Z**2 / (2 * num)) / squeeze
    half = Z / squeeze * math.sqrt(share * (1 - share) / num + Z**2 / (4 * num**2))
    # Rounding must not push an end past the share it stands for, such as below 0.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def mean_interval(shares: Sequence[float], intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """95 % interval of the plain mean of independent shares, from the interval of each.

    The distances from share to end are added as squares, as variances are: with D shares,
    low = mean - sqrt(sum (p_d - l_d)^2) / D, and the same above. The domains are taken as fixed.

    Paper: Zou and Donner, "Construction of confidence limits about effect measures: a general
    approach", Statistics in Medicine 27 (2008), 1693-1702.
    """
    num = len(shares)
    mean = sum(shares) / num
    below = math.hypot(*(share - low for share, (low, _) in zip(shares, intervals, strict=True))) / num
    above = math.hypot(*(high - share for share, (_, high) in zip(shares, intervals, strict=True))) / num
    return mean - below, mean + above


def seed_interval(mean: float, sd: float | None, num: int) -> tuple[float, float] | None:
    """95 % interval of a mean over seeds, mean -+ t sd / sqrt(n); None for one seed."""
    if sd is None:
        return None
    from scipy import stats

    half = float(stats.t.ppf(0.975, num - 1)) * sd / math.sqrt(num)
    return mean - half, mean + half
