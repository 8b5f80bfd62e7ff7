"""Intervals and tests: for shares and means over examples, and for paired differences over seeds.

An interval over examples covers the draw of the examples, not other seeds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsdr.seeds import seed_for
from fedsdr.storage import Event

Z = 1.959964
"""97.5 % point of the standard normal distribution: two-sided 95 % intervals."""
LEVEL = 0.05
"""A difference is significant if its p value is below this."""
NUM_HALVES = 200


def t_quantile(freedom: int, num_tests: int = 1) -> float:
    """97.5 % point of Student's t distribution: two-sided 95 % intervals. Of several tests: Bonferroni's."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - 0.025 / num_tests))


def wilson(share: float, num: float) -> tuple[float, float]:
    """95 % interval of a share p of n independent yes-or-no outcomes.

    (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)

    The ends are the shares that a normal test at level 5 % just does not reject, so the interval stays within
    [0, 1] and has positive width even if p is 0 or 1.

    Args:
        share: p, in [0, 1].
        num: n, at least 1.

    Paper: Wilson, "Probable inference, the law of succession, and statistical inference", Journal
    of the American Statistical Association 22 (1927), 209-212.
    """
    squeeze = 1 + Z**2 / num
    middle = (share + Z**2 / (2 * num)) / squeeze
    half = Z / squeeze * math.sqrt(share * (1 - share) / num + Z**2 / (4 * num**2))
    # Rounding must not push an end past its limit, such as below 0.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def mean_interval(shares: Sequence[float], intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """95 % interval of the plain mean of independent shares, from their intervals.

    The distances from share to end are added in quadrature, like standard errors: with D shares, low = mean -
    sqrt(sum (p_d - l_d)^2) / D, and the same above. The domains are taken as fixed.

    Paper: Zou and Donner, "Construction of confidence limits about effect measures: a general
    approach", Statistics in Medicine 27 (2008), 1693-1702.
    """
    num = len(shares)
    mean = sum(shares) / num
    below = math.hypot(*(share - low for share, (low, _) in zip(shares, intervals, strict=True))) / num
    above = math.hypot(*(high - share for share, (_, high) in zip(shares, intervals, strict=True))) / num
    return mean - below, mean + above


def difference_interval(
    share: float, num: float, other: float, num_other: float, correlation: float = 0.0
) -> tuple[float, float]:
    """95 % interval of p - q, for two shares of independent or of the same examples.

    With the ends (l, u) of `wilson` of each, and the correlation phi:
    low = p - q - sqrt((p - l_p)^2 - 2 phi (p - l_p) (u_q - q) + (u_q - q)^2), and
    high = p - q + sqrt((u_p - p)^2 - 2 phi (u_p - p) (q - l_q) + (q - l_q)^2).

    Args:
        share: p.
        num: Number of examples of p.
        other: q.
        num_other: Number of examples of q.
        correlation: phi; 0 for independent examples, otherwise from `phi`.

    Paper: Newcombe, "Interval estimation for the difference between independent proportions", Statistics
    in Medicine 17 (1998), 873-890, method 10; of the same examples: "Improved confidence intervals for the
    difference between binomial proportions based on paired data", the same volume, 2635-2650, method 10.
    """
    (low, high), (low_other, high_other) = wilson(share, num), wilson(other, num_other)

    def length(one: float, two: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * correlation * one * two + two**2))

    difference = share - other
    return (
        difference - length(share - low, high_other - other),
        difference + length(high - share, other - low_other),
    )


def phi(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Correlation of two outcomes on the same examples, as required by `difference_interval`.

    With the counts a (both), b (only the first), c (only the second) and d (neither) of n, (ad - bc) /
    sqrt((a + b) (c + d) (a + c) (b + d)), where a positive ad - bc is reduced by n / 2, but not below 0; 0 if
    one outcome is constant.
    """
    a, b, c, d = (pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False)))
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if not product:
        return 0.0
    excess = a * d - b * c
    return (max(excess - len(pairs) / 2, 0) if excess > 0 else excess) / math.sqrt(product)


def half_sample_interval(
    statistic: Callable[[NDArray[np.int64]], float], num: int
) -> tuple[float, float] | None:
    """95 % interval of a statistic of n examples, such as a ratio of means, from random halves of them.

    With h = n // 2 examples in each of 200 halves s, drawn without replacement,

        v = h / (n - h) * mean over s of (theta_s - theta)^2,

    and the interval is theta -+ t sqrt(v), t the 97.5 % point of Student's t with n - 1 degrees of freedom,
    since few examples estimate v badly. Half of the examples vary around the whole as the whole varies
    around its population, so v needs no other factor if n is even.

    Paper: Shao and Wu, "A general theory for jackknife variance estimation", Annals of Statistics 17
    (1989), 1176-1197, the jackknife that deletes d = n - h. Differs: 200 random halves instead of all.

    Args:
        statistic: Maps indices of examples, 0 to n - 1, to theta.
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
    half_width = t_quantile(num - 1) * error
    return whole - half_width, whole + half_width


def half_samples(sizes: Sequence[int], rng: np.random.Generator) -> Iterator[list[NDArray[np.intp]]]:
    """Draw half of each group's indices, 200 times; of an odd number the smaller half, to be conservative.

    For statistics of several groups, whose spread over the halves equals that of the whole, as in
    `half_sample_interval`. No example occurs twice, as it would in a bootstrap, which makes texts seem more
    similar than they are.

    Args:
        sizes: Number of examples of each group, at least two.
        rng: Source of the draws.
    """
    for _ in range(NUM_HALVES):
        yield [rng.permutation(size)[: size // 2] for size in sizes]


def with_error(value: float, error: float, freedom: int) -> Event:
    """Value with the ends of its 95 % interval, value -+ t error; NaN gives None for the ends.

    t is Student's, with the degrees of freedom of the error.
    """
    half = t_quantile(freedom) * error
    found = {"value": value, "low": value - half, "high": value + half}
    return {name: number if math.isfinite(number) else None for name, number in found.items()}


def with_interval(value: float, draws: NDArray[np.float64], freedom: int) -> Event:
    """Value with the ends of its 95 % interval, value -+ t sd of the draws (num_draws,).

    t is Student's; its degrees of freedom are those of the smallest group: units minus one. None for a value
    that is not a number, and for the ends if a draw is not a number.
    """
    return with_error(float(value), float(draws.std(ddof=1)), freedom)


def seed_interval(mean: float, sd: float | None, num: int) -> tuple[float, float] | None:
    """95 % interval of a mean over seeds, mean -+ t sd / sqrt(n); None for one seed."""
    if sd is None:
        return None
    half = t_quantile(num - 1) * sd / math.sqrt(num)
    return mean - half, mean + half


@dataclass(frozen=True)
class Difference:
    """Difference between two models."""

    mean: float
    low: float
    high: float
    """Ends of the 95 % interval by Student's t."""
    p: float
    """Two-sided p value, before Holm's correction."""


def paired(values: Sequence[float], baseline: Sequence[float]) -> Difference | None:
    """Compare values of the same seeds by Student's paired t-test, with n - 1 degrees of freedom.

    Returns:
        None for fewer than two seeds, and if all differences are equal: there is no spread to test against.
    """
    differences = np.subtract(values, baseline)
    if len(differences) < 2 or _has_no_spread(differences.mean(), differences.std(ddof=1)):
        return None
    from scipy import stats

    test = stats.ttest_rel(values, baseline)
    low, high = test.confidence_interval(0.95)
    return Difference(float(differences.mean()), float(low), float(high), float(test.pvalue))


def power(effect: float, num: int) -> float:
    """Share of repetitions in which the two-sided paired t-test at level 5 % finds a difference.

    The noncentral t distribution with n - 1 degrees of freedom and noncentrality d sqrt(n).

    Args:
        effect: d, the true mean of the differences over their true standard deviation.
        num: n, the number of seeds, at least 2.

    Source: Cohen, Statistical Power Analysis for the Behavioral Sciences, second edition (1988), chapter 2.
    """
    from scipy import stats

    edge, shift = t_quantile(num - 1), abs(effect) * math.sqrt(num)
    # The lower tail is the upper one of -d; as a lower tail it is NaN if tiny.
    return float(stats.nct.sf(edge, num - 1, shift) + stats.nct.sf(edge, num - 1, -shift))


def clustered(differences: NDArray[np.float64], strata: Sequence[str]) -> Difference | None:
    """Compare answers to the same examples with the same seeds, over redraws of both.

    The estimate is theta = mean over strata of the mean of d_si. Answers of one seed are correlated, and so
    are answers to one example, so its variance is that of two-way clusters: with e_si = w_i (d_si - mean of
    its stratum), w_i = 1 / (strata x examples of the stratum),

        V = S / (S - 1) sum_s (sum_i e_si)^2 / S^2 + sum_i n_i / (n_i - 1) (sum_s e_si)^2 / S^2
            - sum_si e_si^2 / S^2,

    at least the larger of the first two. The first term alone is the paired test over seeds, since all seeds
    answer the same examples.

    Paper: Cameron, Gelbach, Miller, "Robust inference with multiway clustering", Journal of Business &
    Economic Statistics 29 (2011), 238-249. As there, the degrees of freedom of Student's t are the
    smaller number of clusters minus one. Differs: strata (domains) are fixed and equally weighted.

    Args:
        differences: d_si, one model's answer minus the other's (seeds, examples).
        strata: Domain of each example.

    Returns:
        None for fewer than two seeds, if a stratum has one example, and if nothing differs.
    """
    num_seeds, _ = differences.shape
    names = sorted(set(strata))
    rows = {name: [place for place, of in enumerate(strata) if of == name] for name in names}
    if num_seeds < 2 or min(map(len, rows.values())) < 2:
        return None
    errors = np.zeros_like(differences)
    example_variance = mean = 0.0
    for places in rows.values():
        part = differences[:, places]
        errors[:, places] = (part - part.mean()) / (len(names) * len(places))
        sums = errors[:, places].sum(axis=0)
        example_variance += len(places) / (len(places) - 1) * float(sums @ sums) / num_seeds**2
        mean += float(part.mean()) / len(names)
    of_seed = errors.sum(axis=1)
    seed_variance = float(of_seed @ of_seed) / (num_seeds * (num_seeds - 1))
    both = seed_variance + example_variance - float((errors**2).sum()) / num_seeds**2
    error = math.sqrt(max(seed_variance, example_variance, both))
    if _has_no_spread(mean, error):
        return None
    from scipy import stats

    freedom = min(num_seeds, len(strata)) - 1
    half = t_quantile(freedom) * error
    return Difference(mean, mean - half, mean + half, 2 * float(stats.t.sf(abs(mean) / error, freedom)))


def paired_share(right: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the difference of two models' shares of right answers to the same n questions.

    With b questions that only the first answers right, c that only the second does, p = (b + 1) / (n + 2) and
    q = (c + 1) / (n + 2): p - q -+ z sqrt((p + q - (p - q)^2) / (n + 2)). Its width is positive even if no
    answer differs.

    Paper: Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions based
    on paired data", Journal of Educational and Behavioral Statistics 37 (2012), 479-488.
    """
    pairs, num = list(zip(right, baseline, strict=True)), len(right) + 2
    p, q = (1 + sum(a > b for a, b in pairs)) / num, (1 + sum(a < b for a, b in pairs)) / num
    half = Z * math.sqrt((p + q - (p - q) ** 2) / num)
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def _has_no_spread(mean: float, deviation: float) -> bool:
    """Whether a deviation is only rounding."""
    return deviation <= 1e-12 * abs(mean)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Correct p values for their number: of m ascending ones, max over j <= i of (m - j + 1) p_j, at most 1.

    None, a comparison that could not be tested, stays None and counts as p = 1: otherwise the correction
    would be the weaker, the more comparisons fail.

    Paper: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics
    6 (1979), 65-70.
    """
    corrected: list[float | None] = [None] * len(ps)
    largest = 0.0
    known = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(ps) - rank) * p))
        corrected[place] = largest
    return corrected
