import math

import numpy as np
import pytest

from fedsdr.intervals import Z, difference_interval, half_sample_interval, mean_interval, wilson


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
    """Which is known: s / sqrt(n). 200 halves tell a standard deviation within 1 / sqrt(400) = 5 %, 1 sigma."""
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


def test_one_example_has_no_interval() -> None:
    assert half_sample_interval(lambda places: 1.0, 1) is None
