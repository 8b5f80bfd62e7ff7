"""Intervals for shares and means over examples. They cover the draw of the examples, not other seeds."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedsdr.seeds import seed_for
from fedsdr.storage import Event

Z = 1.959964
"""97.5 % point of the standard normal distribution: two-sided 95 % intervals."""
NUM_HALVES = 200


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


def difference_interval(share: float, num: float, other: float, num_other: float) -> tuple[float, float]:
    """95 % interval of p - q, two shares of independent examples.

    With the ends (l, u) of `wilson` of each: low = p - q - sqrt((p - l_p)^2 + (u_q - q)^2), and
    high = p - q + sqrt((u_p - p)^2 + (q - l_q)^2).

    Args:
        share: p.
        num: What p was counted over.
        other: q.
        num_other: What q was counted over.

    Paper: Newcombe, "Interval estimation for the difference between independent proportions", Statistics
    in Medicine 17 (1998), 873-890, method 10.
    """
    (low, high), (low_other, high_other) = wilson(share, num), wilson(other, num_other)
    difference = share - other
    return (
        difference - math.hypot(share - low, high_other - other),
        difference + math.hypot(high - share, other - low_other),
    )


def half_sample_interval(
    statistic: Callable[[NDArray[np.int64]], float], num: int
) -> tuple[float, float] | None:
    """95 % interval of a statistic of n examples, such as a ratio of means, from random halves of them.

    With h = n // 2 examples in each of 200 halves s, drawn without replacement,

        v = h / (n - h) * mean over s of (theta_s - theta)^2,

    and the interval is theta -+ 1.96 sqrt(v). Half of the examples spread about the whole as the whole
    about what it is drawn from, so v needs no other factor where n is even.

    Paper: Shao and Wu, "A general theory for jackknife variance estimation", Annals of Statistics 17
    (1989), 1176-1197, the jackknife that deletes d = n - h. Differs: 200 random halves instead of all.

    Args:
        statistic: From the places of examples, 0 to n - 1, to theta.
        num: n.

    Returns:
        None for fewer than two examples.
    """
    if num < 2:
        return None
    rng = np.random.default_rng(seed_for(0, "halves", num))
    half = num // 2
    whole = statistic(np.arange(num))
    spread = [statistic(places) - whole for (places,) in half_samples([num], rng)]
    error = math.sqrt(half / (num - half) * float(np.mean(np.square(spread))))
    return whole - Z * error, whole + Z * error


def half_samples(sizes: Sequence[int], rng: np.random.Generator) -> Iterator[list[NDArray[np.intp]]]:
    """Draw a half of each group's places, 200 times; of an odd number the smaller half, which errs wide.

    For statistics of several groups, whose spread over the halves is that of the whole, as in
    `half_sample_interval`. No example comes twice, as it would in a bootstrap, which makes texts seem more
    alike than they are.

    Args:
        sizes: How many examples each group has, at least two.
        rng: Where the draws come from.
    """
    for _ in range(NUM_HALVES):
        yield [rng.permutation(size)[: size // 2] for size in sizes]


def with_error(value: float, error: float) -> Event:
    """Value with the ends of its 95 % interval, value -+ 1.96 error; NaN gives None for the ends."""
    half = Z * error
    found = {"value": value, "low": value - half, "high": value + half}
    return {name: None if math.isnan(number) else number for name, number in found.items()}


def with_interval(value: float, draws: NDArray[np.float64], freedom: int) -> Event:
    """Value with the ends of its 95 % interval, value -+ t sd of the draws (num_draws,).

    t is Student's, with as many degrees of freedom as the smallest group has units less one. None for a value
    that is not a number, and for the ends where a draw is none.
    """
    from scipy import stats

    half = float(stats.t.ppf(0.975, freedom)) * float(draws.std(ddof=1))
    found = {"value": float(value), "low": float(value) - half, "high": float(value) + half}
    return {name: number if math.isfinite(number) else None for name, number in found.items()}


def seed_interval(mean: float, sd: float | None, num: int) -> tuple[float, float] | None:
    """95 % interval of a mean over seeds, mean -+ t sd / sqrt(n); None for one seed."""
    if sd is None:
        return None
    from scipy import stats

    half = float(stats.t.ppf(0.975, num - 1)) * sd / math.sqrt(num)
    return mean - half, mean + half
