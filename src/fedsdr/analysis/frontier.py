"""Gain at equal cost: an arm against plain federated LoRA scaled to the same distance from the base.

Gain. With the loss l_i of example i, the mean over its response tokens in nats, on its true response,

    G = 1/D sum over domains d of 1/n_d sum over i in d of (l_i(base) - l_i(model)).

Cost. C of `analysis.cost`. The control is W0 + lambda R, with R the change of W0 by plain federated LoRA
after half of the rounds or all of them; lambda runs over `LAMBDAS`, and lambda = 0 is the base, at C = G = 0.
Each round gives a curve (C, G) over lambda. KL is quadratic in a small change, so both axes are nearly linear
in s = sqrt(C); between neighbouring lambdas, G is interpolated linearly in s.

Envelope. Candidates at a cost c are all points with C <= c, and the interpolated point at s = sqrt(c) of each
segment of a curve that crosses it. Without the interpolation, sparse points would flatter an arm whose cost
is just below one of them. The candidate with the largest gain on validation examples is selected, and its
gain on test examples is used: selecting on test examples would flatter the control. For one seed

    D = G(arm) - G(control at C <= C(arm)).

An arm with a higher cost than every point of the control is beyond its range, and not comparable.

Test: Student's t of D over seeds. Interval: percentiles over draws b of

    mean over seeds of D_b + t_b se.

A draw resamples test examples within domains, and prompts of the cost, the same for all seeds, and each
seed's own validation examples; costs, gains and the envelope are recomputed. If it puts an arm beyond the
range, the arm is compared with the control's best point. se is the standard error of D over seeds, and t_b a
draw of Student's t with S - 1 degrees of freedom: resampling so few seeds would give intervals that are too
narrow, down to a coverage of 73 % with three.

Paper: scaling after Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), CVPR 2022,
arXiv 2109.01903. Bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap (1993). The comparison and
its interval are our own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsdr.seeds import seed_for
from fedsdr.stats import LEVEL, Difference, holm, paired

Array = NDArray[np.float64]
LAMBDAS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5)
"""Scales of the control."""
ARM_LAMBDAS = (0.5, 1.0)
"""Scales at which the other arms are compared."""
MARGIN = 0.03
"""Margin of "no worse", in nats of loss."""
ROUNDING = 1 + 1e-9
"""Tolerance for summation order, so that the control's own last point is within its range."""
NUM_DRAWS = 2000
Verdict = Literal["better", "worse", "no worse", "undecided", "not comparable"]


@dataclass(frozen=True)
class Curve:
    """A model at ascending scales, without the base."""

    cost: Array
    """KL per prompt (scales, prompts)."""
    validation: Array
    """Gain per validation example (scales, examples)."""
    test: Array
    """Gain per test example (scales, examples)."""


@dataclass(frozen=True)
class SeedPair:
    """One seed: the control's curves, and the compared model."""

    control: Sequence[Curve]
    cost: Array
    """KL of the compared model, per prompt."""
    test: Array
    """Its gain per test example."""
    domains: Sequence[str]
    """Domain of each test example, the same examples for all seeds."""
    validation_domains: Sequence[str]


@dataclass(frozen=True)
class CostComparison:
    """A model against the control at equal cost."""

    by_seed: Sequence[float]
    """D of each comparable seed."""
    num_beyond: int
    """Seeds whose cost is beyond the control's range."""
    cost: float
    gain: float
    control: float
    """Means over the comparable seeds, or over all seeds if none is."""
    test: Difference | None
    low: float | None
    high: float | None
    """Ends of the 95 % interval of the mean of D; None if a seed is beyond the range."""


def domain_weights(domains: Sequence[str]) -> Array:
    """Weights (examples,) that turn a sum over examples into the mean of domain means."""
    names, place, counts = np.unique(np.asarray(domains), return_inverse=True, return_counts=True)
    return 1.0 / (len(names) * counts[place])


def control_gain(
    costs: Sequence[Array], validation: Sequence[Array], test: Sequence[Array], limit: ArrayLike
) -> Array:
    """The control's gain on test examples at a cost of at most `limit`, chosen on validation examples.

    Args:
        costs: C of each curve at ascending scales (..., scales), without the base.
        validation: Mean gain on validation examples, likewise.
        test: Mean gain on test examples, likewise.
        limit: Largest cost (...,).
    """
    root = np.sqrt(np.maximum(limit, 0.0))
    best = np.zeros_like(root), np.zeros_like(root)  # the base, on validation and on test examples
    for curve in zip(costs, validation, test, strict=True):
        points = [np.moveaxis(values, -1, 0) for values in curve]
        s, v, g = (np.concatenate([np.zeros_like(values[:1]), values]) for values in points)
        s = np.sqrt(np.maximum(s, 0))
        for a, b in pairwise(range(len(s))):
            best = _better(best, (v[b], g[b]), s[b] <= root)
            crosses = (np.minimum(s[a], s[b]) < root) & (root < np.maximum(s[a], s[b]))
            share = (root - s[a]) / np.where(crosses, s[b] - s[a], 1.0)
            best = _better(best, (v[a] + share * (v[b] - v[a]), g[a] + share * (g[b] - g[a])), crosses)
    return best[1]


def _better(
    best: tuple[Array, Array], other: tuple[Array, Array], is_candidate: NDArray[np.bool_]
) -> tuple[Array, Array]:
    """The point with the larger gain on validation examples."""
    taken = is_candidate & (other[0] > best[0])
    return np.where(taken, other[0], best[0]), np.where(taken, other[1], best[1])


def against_control(seeds: Sequence[SeedPair]) -> CostComparison:
    """Compare a model with the control at its cost, seed by seed, and over seeds and examples."""
    plain = [_weighted(pair, _equal(pair)) for pair in seeds]
    beyond = [bool(cost > max(c.max() for c in costs) * ROUNDING) for costs, _, _, cost, _ in plain]
    inside = [one for one, is_beyond in zip(plain, beyond, strict=True) if not is_beyond]
    shown = inside or plain
    controls = [float(control_gain(costs, by, gains, cost)) for costs, by, gains, cost, _ in shown]
    gains = [float(gain) for *_, gain in shown]
    by_seed = [gain - other for gain, other in zip(gains, controls, strict=True)] if inside else []
    low, high = (None, None) if any(beyond) else _interval(seeds, by_seed)
    return CostComparison(
        by_seed,
        int(sum(beyond)),
        float(np.mean([cost for *_, cost, _ in shown])),
        float(np.mean(gains)),
        float(np.mean(controls)),
        paired(gains, controls) if inside and not any(beyond) else None,
        low,
        high,
    )


def crossed_interval(values: Array, strata: Sequence[str]) -> tuple[float, float] | None:
    """Ends of the 95 % interval of a mean over redraws of seeds and examples; None for fewer than two seeds.

    Args:
        values: Differences by seed and example (seeds, examples), with the same examples for all seeds.
        strata: Domain of each example; domain means are weighted equally.
    """
    if len(values) < 2:
        return None
    rng = np.random.default_rng(seed_for(0, "crossed", len(values)))
    return _ends(_drawn(strata, rng) @ values.T, values @ domain_weights(strata), rng)


def verdicts(comparisons: Sequence[CostComparison]) -> list[tuple[Verdict, float | None]]:
    """Verdict on each of several arms, and its p value by Holm over them.

    better, worse: p < 0.05 and an interval on that side of 0. no worse: an interval above -0.03 nats.
    """
    ps = holm([one.test.p if one.test else None for one in comparisons])
    return [(_verdict(one, p), p) for one, p in zip(comparisons, ps, strict=True)]


def _verdict(one: CostComparison, p: float | None) -> Verdict:
    if one.num_beyond:
        return "not comparable"
    if one.low is None or one.high is None:
        return "undecided"
    if p is not None and p < LEVEL and (one.low > 0 or one.high < 0):
        return "better" if one.low > 0 else "worse"
    return "no worse" if one.low >= -MARGIN else "undecided"


Weights = tuple[Array, Array, Array]
"""Weights of prompts, validation examples and test examples (..., examples); each sums to 1."""


def _equal(pair: SeedPair) -> Weights:
    prompts = np.full(len(pair.cost), 1 / len(pair.cost))
    return prompts, domain_weights(pair.validation_domains), domain_weights(pair.domains)


def _weighted(pair: SeedPair, weights: Weights) -> tuple[list[Array], list[Array], list[Array], Array, Array]:
    """Costs and gains of the control's points (..., scales), and cost and gain of the compared model."""
    prompts, validation, test = weights
    return (
        [prompts @ curve.cost.T for curve in pair.control],
        [validation @ curve.validation.T for curve in pair.control],
        [test @ curve.test.T for curve in pair.control],
        prompts @ pair.cost,
        test @ pair.test,
    )


def _interval(seeds: Sequence[SeedPair], by_seed: Sequence[float]) -> tuple[float | None, float | None]:
    """Ends of the 95 % interval of the mean of D; None for fewer than two seeds."""
    if len(seeds) < 2:
        return None, None
    rng = np.random.default_rng(seed_for(0, "frontier", len(seeds)))
    prompts = _drawn([""] * len(seeds[0].cost), rng)
    test = _drawn(seeds[0].domains, rng)
    found = []
    for pair in seeds:
        weights = prompts, _drawn(pair.validation_domains, rng), test
        costs, by, gains, cost, gain = _weighted(pair, weights)
        found.append(gain - control_gain(costs, by, gains, cost))
    return _ends(np.stack(found, axis=1), by_seed, rng)


def _drawn(domains: Sequence[str], rng: np.random.Generator) -> Array:
    """Weights (draws, examples) of examples drawn with replacement within each domain."""
    of = np.asarray(domains)
    weights = np.zeros((NUM_DRAWS, len(of)))
    names = np.unique(of)
    for name in names:
        (places,) = np.nonzero(of == name)
        equal = np.full(len(places), 1 / len(places))
        counts = rng.multinomial(len(places), equal, size=NUM_DRAWS)
        weights[:, places] = counts / (len(places) * len(names))
    return weights


def _ends(values: Array, by_seed: Sequence[float] | Array, rng: np.random.Generator) -> tuple[float, float]:
    """Ends of the 95 % interval of a mean over seeds.

    Args:
        values: By draw of examples and seed (draws, seeds).
        by_seed: With all examples (seeds,). Their standard error has the noise of examples within seeds, too,
            so the interval is rather too wide where that is large.
        rng: Source of Student's t.
    """
    error = float(np.std(by_seed, ddof=1)) / math.sqrt(len(by_seed))
    means = values.mean(axis=1) + error * rng.standard_t(len(by_seed) - 1, len(values))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
