"""The frontier: arms against the control at equal cost, on cases whose envelope is known."""

import math

import numpy as np
import pytest

from fedsdr.analysis import frontier
from fedsdr.analysis.frontier import (
    CostComparison,
    Curve,
    SeedPair,
    against_control,
    control_gain,
    crossed_interval,
    verdicts,
)
from fedsdr.stats import Difference, holm, paired

NUM_PROMPTS, DOMAINS = 20, ["a"] * 6 + ["b"] * 3


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier, "NUM_DRAWS", 200)


def curve(points: list[tuple[float, float]], noise: np.random.Generator | None = None) -> Curve:
    """A curve of (cost, gain), with noise by prompt and example that does not change the means."""

    def spread(values: list[float], num: int) -> np.ndarray:
        rows = np.tile(np.array(values)[:, None], num)
        if noise is None:
            return rows
        off = noise.normal(scale=0.05, size=num)
        return rows * (1 + off - off.mean())

    costs, gains = zip(*points, strict=True)
    return Curve(spread(costs, NUM_PROMPTS), spread(gains, 9), spread(gains, 9))


def pair(control: list[Curve], cost: float, gain: float) -> SeedPair:
    return SeedPair(control, np.full(NUM_PROMPTS, cost), np.full(9, gain), DOMAINS, DOMAINS)


def of(values: list[float]) -> np.ndarray:
    return np.array(values)


def test_the_control_at_a_known_cost_is_interpolated_in_the_root_of_the_cost():
    """Points (C, G) = (0.04, 0.2), (0.16, 0.4): s = 0.2 and 0.4, so at s = 0.3 G is 0.3, though C is 0.09."""
    costs, gains = [of([0.04, 0.16])], [of([0.2, 0.4])]
    assert control_gain(costs, gains, gains, 0.09) == pytest.approx(0.3)
    assert control_gain(costs, gains, gains, 0.01) == pytest.approx(
        0.1
    )  # between the base and the first point
    assert control_gain(costs, gains, gains, 0.0) == 0


def test_the_envelope_takes_the_better_round_and_never_falls():
    """A later round costs more for the same gain; past its best scale a curve loses, and the best point stays."""
    costs = [of([0.01, 0.04, 0.16]), of([0.04, 0.16, 0.64])]
    gains = [of([0.3, 0.5, 0.2]), of([0.3, 0.45, 0.6])]
    assert control_gain(costs, gains, gains, 0.04) == pytest.approx(0.5)
    assert control_gain(costs, gains, gains, 0.16) == pytest.approx(0.5)  # not 0.2 of round 1, nor 0.45 of 2
    assert control_gain(costs, gains, gains, 0.64) == pytest.approx(0.6)


def test_the_point_is_chosen_on_validation_examples_and_its_gain_is_that_on_test_examples():
    costs = [of([0.01]), of([0.01])]
    assert control_gain(costs, [of([0.5]), of([0.4])], [of([0.1]), of([0.9])], 0.01) == pytest.approx(0.1)


def test_sparse_points_do_not_flatter_an_arm_that_costs_a_little_less_than_one_of_them():
    """An arm on the control's own line, just before its point at C = 0.25: without interpolation D were 0.29."""
    root = 0.49
    arm = pair([curve([(0.04, 0.2), (0.25, 0.5)])], root**2, root)
    assert against_control([arm, arm]).by_seed == pytest.approx([0, 0])


def test_the_control_against_itself_has_no_difference_at_any_scale():
    points = [(0.01, 0.2), (0.04, 0.35), (0.16, 0.5)]
    for cost, gain in points:
        found = against_control([pair([curve(points)], cost, gain)] * 3)
        assert found.by_seed == pytest.approx([0, 0, 0])
        assert verdicts([found]) == [("no worse", None)]


def test_an_adapter_of_zero_is_the_base_and_differs_from_no_control():
    found = against_control([pair([curve([(0.01, 0.2)])], 0.0, 0.0)] * 2)
    assert (found.cost, found.gain, found.control, found.by_seed) == (0, 0, 0, [0, 0])


def test_an_arm_that_costs_more_than_all_of_the_control_is_not_comparable_and_has_no_test():
    inside, beyond = (pair([curve([(0.04, 0.2)])], cost, 0.9) for cost in (0.02, 0.05))
    found = against_control([inside, beyond, inside])
    assert found.num_beyond == 1
    assert len(found.by_seed) == 2
    assert (found.test, found.low) == (None, None)
    assert verdicts([found]) == [("not comparable", None)]


def test_domains_weigh_alike_whatever_their_numbers_of_examples():
    """Six examples of a gain 0, three of b gain 1: the mean over domains is a half, not a third."""
    gains = np.array([0.0] * 6 + [1.0] * 3)
    some = SeedPair([curve([(0.01, 0.0)])], np.full(NUM_PROMPTS, 0.01), gains, DOMAINS, DOMAINS)
    assert against_control([some]).gain == pytest.approx(0.5)


def test_the_bootstrap_computes_costs_and_envelope_anew():
    """Arm and control gain s by example; the arm's cost is of one prompt alone, so the prompts drawn decide.

    Drawn k times among 20, that prompt makes the arm's cost k/20, and the control, whose cost is 1 of every
    prompt and whose gain is 1, gains sqrt(k/20) there; the arm's gain stays sqrt(1/20). An envelope that was
    kept would give an interval without width.
    """
    cost = np.zeros(NUM_PROMPTS)
    cost[0] = 1.0
    arm = SeedPair([curve([(1.0, 1.0)])], cost, np.full(9, math.sqrt(1 / 20)), DOMAINS, DOMAINS)
    found = against_control([arm, arm])
    assert found.by_seed == pytest.approx([0, 0])
    assert found.high == pytest.approx(math.sqrt(1 / 20))  # k = 0, in 36 % of the draws
    assert found.low == pytest.approx(math.sqrt(1 / 20) - math.sqrt(3 / 20), abs=0.09)  # k of 3 or 4


def test_a_clear_gain_at_equal_cost_is_better_and_a_clear_loss_worse():
    noise = np.random.default_rng(0)
    controls = [
        [curve([(0.04, 0.2 + shift), (0.16, 0.4 + shift)], noise)] for shift in (0, 0.01, -0.01, 0.005)
    ]
    better, worse = (against_control([pair(c, 0.09, gain) for c in controls]) for gain in (0.6, 0.1))
    assert [word for word, _ in verdicts([better, worse])] == ["better", "worse"]
    assert np.mean(better.by_seed) == pytest.approx(0.6 - 0.3, abs=0.01)
    assert better.low is not None and 0 < better.low < np.mean(better.by_seed) < better.high


def compared(p: float, low: float, high: float) -> CostComparison:
    middle = (low + high) / 2
    return CostComparison([middle] * 3, 0, 0.1, middle, 0.0, Difference(middle, low, high, p), low, high)


def test_verdicts_use_holms_correction_over_the_arms():
    """p of 0.02, 0.03 and 0.5: Holm makes 0.06, 0.06 and 0.5 of them, so none is significant any more."""
    assert [p for _, p in verdicts([compared(p, 0.01, 0.2) for p in (0.02, 0.03, 0.5)])] == pytest.approx(
        holm([0.02, 0.03, 0.5])
    )
    three = verdicts([compared(p, 0.01, 0.2) for p in (0.02, 0.03, 0.5)])
    alone = verdicts([compared(0.02, 0.01, 0.2)])
    assert ({word for word, _ in three}, alone[0][0]) == ({"no worse"}, "better")


@pytest.mark.parametrize(("low", "word"), [(-0.029, "no worse"), (-0.031, "undecided")])
def test_no_worse_means_an_interval_above_the_margin(low: float, word: str):
    assert verdicts([compared(0.5, low, 0.1)])[0][0] == word


@pytest.mark.parametrize("num_seeds", [3, 8])
@pytest.mark.parametrize(("of_seed", "of_example"), [(1.0, 0.3), (0.3, 1.0), (0.0, 1.0)])
def test_the_interval_contains_the_truth_as_often_as_it_says(
    num_seeds: int, of_seed: float, of_example: float
):
    """D_si = seed s + example i, each with mean 0 and these deviations; 95 % of 300 are 285, +- 4 sd of 3.8."""
    rng, contained = np.random.default_rng(1), 0
    for _ in range(300):
        seeds, examples = rng.normal(0, of_seed, (num_seeds, 1)), rng.normal(0, of_example * 3, 40)
        low, high = crossed_interval(seeds + examples, ["a"] * 40) or (0, 0)
        contained += low <= 0 <= high
    assert 270 <= contained <= 300


def test_without_spread_over_examples_the_interval_is_students_t_over_seeds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frontier, "NUM_DRAWS", 20_000)
    values = [0.1, 0.2, 0.6]
    exact = paired(values, [0, 0, 0])
    found = crossed_interval(np.tile(np.array(values)[:, None], 5), ["a"] * 5)
    assert exact and found == pytest.approx((exact.low, exact.high), rel=0.1)
