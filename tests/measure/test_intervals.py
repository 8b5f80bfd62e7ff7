import math

import pytest

from fedsdr.measure.intervals import Z, mean_interval, wilson


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
