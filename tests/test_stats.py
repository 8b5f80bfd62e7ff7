"""Intervals, paired tests and their correction, worked out by hand or by another library."""

import math

import numpy as np
import pytest
from scipy import stats

from fedsdr.stats import (
    Z,
    clustered,
    difference_interval,
    half_sample_interval,
    holm,
    mean_interval,
    paired,
    paired_share,
    power,
    wilson,
)

SCORES = {"fedit": [0.50, 0.40, 0.60], "fedsd": [0.55, 0.50, 0.66]}


def test_the_paired_test_is_scipys():
    difference = paired(SCORES["fedsd"], SCORES["fedit"])
    oracle = stats.ttest_rel(SCORES["fedsd"], SCORES["fedit"])
    assert difference is not None
    assert difference.mean == pytest.approx((0.05 + 0.10 + 0.06) / 3)
    assert difference.p == pytest.approx(oracle.pvalue)
    assert (difference.low, difference.high) == pytest.approx(oracle.confidence_interval(0.95))


def test_power_is_that_of_the_tables_and_is_the_level_where_nothing_differs():
    """Half a standard deviation needs 34 pairs for a power of 80 % (as G*Power and R's power.t.test say)."""
    assert power(0.5, 33) < 0.8 < power(0.5, 34) == pytest.approx(0.808, abs=5e-4)
    assert power(0.0, 8) == pytest.approx(0.05)
    assert power(-20.0, 4) == power(20.0, 4) == 1


def test_without_spread_there_is_no_test():
    assert paired([0.5], [0.4]) is None
    assert paired([0.5, 0.5], [0.5, 0.5]) is None


def test_shares_of_the_same_questions_by_hand():
    """Of 10 questions, 3 were gained and 1 lost: p = 4 / 12, q = 2 / 12, p + q - (p - q)^2 = 68 / 144."""
    base = [1, 0, 0, 0, 1, 1, 0, 0, 1, 0]
    tuned = [0, 1, 1, 1, 1, 1, 0, 0, 1, 0]
    half = Z * math.sqrt(68 / 144 / 12)
    assert paired_share(tuned, base) == pytest.approx((2 / 12 - half, 2 / 12 + half))
    assert paired_share(base, tuned) == pytest.approx((-2 / 12 - half, -2 / 12 + half))


def test_the_interval_of_paired_shares_covers_the_true_difference():
    """A model gains 3 % of all questions and loses 8 %; of 1000 draws of 200 questions 95 % cover -0.05."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(1000):
        change = rng.choice([1, -1, 0], p=[0.03, 0.08, 0.89], size=200)
        low, high = paired_share(np.maximum(change, 0).tolist(), np.maximum(-change, 0).tolist())
        covered += low <= -0.05 <= high
    assert 930 <= covered <= 975


def test_holm_by_hand():
    """Ascending 0.01, 0.02, 0.04 times 3, 2, 1: 0.03, 0.04, 0.04. Never smaller than one before it."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.01, 0.011]) == pytest.approx([0.02, 0.02])  # 1 x 0.011 is raised to 0.02
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_comparison_that_could_not_be_tested_stays_in_holms_family():
    """Of three, the least p is multiplied by 3, not by 2."""
    assert holm([0.03, None, 0.5]) == [pytest.approx(0.09), None, 1.0]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape)


def test_where_only_seeds_differ_the_test_over_both_is_the_paired_one_over_seeds():
    """All examples of a seed share its luck; the other variance is then of what is left, which is nothing."""
    of_seed = np.array([0.1, 0.4, -0.2, 0.3])
    differences = np.repeat(of_seed[:, None], 6, axis=1)
    both, seeds = clustered(differences, ["math"] * 6), paired(of_seed, [0] * 4)
    assert both is not None and seeds is not None
    assert (both.mean, both.low, both.high, both.p) == pytest.approx(
        (seeds.mean, seeds.low, seeds.high, seeds.p)
    )


def test_where_only_examples_differ_the_error_is_that_of_a_paired_test_over_examples():
    of_example = noise(9)
    both = clustered(np.repeat(of_example[None], 4, axis=0), ["math"] * 9)
    error = of_example.std(ddof=1) / 3
    assert both is not None
    assert both.high - both.mean == pytest.approx(error * stats.t.ppf(0.975, 3))  # 4 seeds are the fewer


def test_domains_weigh_alike_however_many_examples_they_have():
    differences = np.array([[1.0, 1.0, 1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]])
    both = clustered(differences, ["code"] * 4 + ["math"] * 2)
    assert both is not None
    assert both.mean == pytest.approx((7 / 8 + 0) / 2)


def test_the_error_over_both_is_right_on_average():
    """Seeds, examples and their meetings draw for themselves: intervals should hold the true difference, 0."""
    rng = np.random.default_rng(0)
    num_held = 0
    for _ in range(400):
        drawn = rng.normal(size=(8, 1)) + rng.normal(size=(1, 40)) + rng.normal(size=(8, 40))
        found = clustered(drawn, ["math"] * 20 + ["code"] * 20)
        assert found is not None
        num_held += found.low <= 0 <= found.high
    assert 0.92 <= num_held / 400 <= 1.0
    # Paired over seeds alone, the examples' luck counts for nothing: such intervals hold 0 more seldom when
    # they matter.
    assert paired(list(drawn.mean(axis=1)), [0.0] * 8) is not None


def test_too_little_to_judge_by():
    assert clustered(noise(1, 5), ["math"] * 5) is None
    assert clustered(noise(3, 3), ["math", "math", "code"]) is None
    assert clustered(np.zeros((3, 4)), ["math"] * 4) is None


def test_none_right_of_ten() -> None:
    # p = 0: middle = half = (z^2/2n) / (1 + z^2/n), so the upper end is z^2 / (n + z^2) = 3.8415 / 13.8415.
    low, high = wilson(0.0, 10)
    assert low == 0
    assert high == pytest.approx(0.27754, abs=1e-5)


def test_half_right_is_symmetric() -> None:
    # p = 1/2: half = z sqrt(n + z^2) / 2n / (1 + z^2/n) = z / (2 sqrt(n + z^2)).
    low, high = wilson(0.5, 40)
    assert (low + high) / 2 == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx(Z / (2 * math.sqrt(40 + Z**2)))


@pytest.mark.parametrize(("share", "num"), [(0.1, 20), (0.75, 60), (0.4, 5)])
def test_ends_are_where_the_normal_test_just_does_not_reject(share: float, num: int) -> None:
    for end in wilson(share, num):
        assert abs(share - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / num))


def test_mean_of_one_share_has_its_interval_and_equal_shares_a_narrower_one() -> None:
    one = wilson(0.3, 50)
    assert mean_interval([0.3], [one]) == pytest.approx(one)
    # Four equal distances d: sqrt(4 d^2) / 4 = d / 2.
    low, high = mean_interval([0.3] * 4, [one] * 4)
    assert (0.3 - low, high - 0.3) == pytest.approx(((0.3 - one[0]) / 2, (one[1] - 0.3) / 2))


def test_difference_of_two_shares_is_newcombes_table() -> None:
    """His example (a): 56/70 and 48/80 differ by 0.2, method 10 gives 0.0524 to 0.3339; (h): 10/10 and 0/10."""
    assert difference_interval(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference_interval(1, 10, 0, 10) == pytest.approx((0.6075, 1.0), abs=5e-5)


@pytest.mark.parametrize("num", [40, 41, 400])
def test_random_halves_give_the_standard_error_of_a_mean(num: int) -> None:
    """The standard error is known: s / sqrt(n). 200 halves estimate a standard deviation within 1 / sqrt(400)
    = 5 %, 1 sigma.
    """
    values = np.random.default_rng(0).exponential(size=num)
    interval = half_sample_interval(lambda places: float(values[places].mean()), num)
    assert interval is not None
    low, high = interval
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(Z * values.std(ddof=1) / math.sqrt(num), rel=0.2)


def test_random_halves_give_the_standard_error_of_a_ratio() -> None:
    """By the delta method: sd(y - r x) / (mean(x) sqrt(n))."""
    rng = np.random.default_rng(1)
    below = rng.uniform(5, 15, size=300)
    above = 2 * below + rng.normal(size=300)
    ratio = above.sum() / below.sum()
    interval = half_sample_interval(lambda at: float(above[at].sum() / below[at].sum()), 300)
    assert interval is not None
    error = (above - ratio * below).std(ddof=1) / below.mean() / math.sqrt(300)
    assert (interval[1] - interval[0]) / 2 == pytest.approx(Z * error, rel=0.2)


def test_an_interval_of_few_examples_covers_as_often_as_it_says() -> None:
    """Means of 2, 4 and 10 normal numbers; a normal quantile would cover 0 in 72, 85 and 91 % of the draws."""
    for num in (2, 4, 10):
        draws = np.random.default_rng(num).normal(size=(400, num))
        found = [half_sample_interval(lambda at, x=x: float(x[at].mean()), num) for x in draws]  # type: ignore[misc]
        assert np.mean([low < 0 < high for low, high in found]) > 0.92  # type: ignore[misc]


def test_one_example_has_no_interval() -> None:
    assert half_sample_interval(lambda places: 1.0, 1) is None
