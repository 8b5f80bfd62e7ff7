"""What would refute the method: verdicts by sign and p, and the seeds that would decide."""

import math
from statistics import mean, stdev

import pytest
from scipy import stats

from fedsdr.experiments.refutation import effect_size, overall, seeds_to_decide, verdict_of_metric
from fedsdr.stats import Difference


def difference(value: float) -> Difference:
    return Difference(value, value - 0.1, value + 0.1, 0.01)


def test_fewer_unsupported_answers_and_more_right_ones_speak_for_the_method():
    assert verdict_of_metric("unsupported_rate", difference(-0.2), 0.01) == "supported"
    assert verdict_of_metric("unsupported_rate", difference(0.2), 0.01) == "refuted"
    assert verdict_of_metric("score", difference(0.2), 0.01) == "supported"
    assert verdict_of_metric("score", difference(-0.2), 0.01) == "refuted"


def test_what_is_not_significant_after_correction_is_undecided():
    assert verdict_of_metric("score", difference(0.2), 0.05) == "undecided"
    assert verdict_of_metric("score", None, None) == "undecided"


def test_one_refuted_metric_refutes_whatever_the_others_say():
    assert overall(["supported", "refuted"]) == "refuted"
    assert overall(["supported", "undecided"]) == "supported"
    assert overall(["undecided", "undecided"]) == "undecided"


def test_the_seeds_that_would_decide_are_the_fewest_whose_interval_excludes_zero():
    gains = [0.02, -0.03, 0.05, 0.01, 0.04]
    size = mean(gains) / stdev(gains)
    assert effect_size(gains) == pytest.approx(size)
    num = seeds_to_decide(gains)

    def half_interval(n: int) -> float:
        return stats.t.ppf(0.975, n - 1) / math.sqrt(n)

    assert half_interval(num) < size <= half_interval(num - 1)


def test_no_number_of_seeds_decides_what_differs_by_nothing():
    assert seeds_to_decide([0.1, -0.1]) is None
    assert seeds_to_decide([0.1, 0.1]) is None  # no spread to verdict_of_metric by
