"""Paired comparisons over seeds and over examples, and the correction for their number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Difference:
    """One model against another."""

    mean: float
    low: float
    high: float
    """Ends of the 95 % interval by Student's t."""
    p: float
    """Two-sided, before Holm's correction."""


def paired(values: Sequence[float], baseline: Sequence[float]) -> Difference | None:
    """Compare values of the same seeds: d_i = a_i - b_i, t = mean(d) / (sd(d) / sqrt(n)).

    Returns:
        The difference, judged by Student's t with n - 1 degrees of freedom. None for fewer than two
        seeds, and where all differences are equal, which leaves no spread to judge by.
    """
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    if len(differences) < 2:
        return None
    return _judge(fmean(differences), stdev(differences) / math.sqrt(len(differences)), len(differences) - 1)


def clustered(differences: NDArray[np.float64], strata: Sequence[str]) -> Difference | None:
    """Compare answers to the same examples under the same seeds: what another draw of both would give.

    The estimate is theta = mean over strata of the mean of d_si. Answers of one seed go together, and so do
    answers to one example, so its variance is that of two-way clusters: with e_si = w_i (d_si - mean of its
    stratum), w_i = 1 / (strata x examples of the stratum),

        V = S / (S - 1) sum_s (sum_i e_si)^2 / S^2 + sum_i n_i / (n_i - 1) (sum_s e_si)^2 / S^2
            - sum_si e_si^2 / S^2,

    at least the larger of the first two. The first alone is the paired test over seeds, since all seeds
    answer the same examples.

    Paper: Cameron, Gelbach, Miller, "Robust inference with multiway clustering", Journal of Business &
    Economic Statistics 29 (2011), 238-249. As there, Student's t has as many degrees of freedom as the
    smaller number of clusters less one. Differs: strata (domains) are fixed and weigh alike.

    Args:
        differences: d_si, one model's answer less the other's (seeds, examples).
        strata: Domain of each example.

    Returns:
        None for fewer than two seeds, where a stratum has one example, and where nothing differs.
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
    variance = max(seed_variance, example_variance, both)
    return _judge(mean, math.sqrt(variance), min(num_seeds, len(strata)) - 1)


def _judge(mean: float, error: float, freedom: int) -> Difference | None:
    """Student's t of a mean with its standard error; None where nothing spreads beyond rounding."""
    if error <= 1e-12 * abs(mean):
        return None
    from scipy import stats

    half = float(stats.t.ppf(0.975, freedom)) * error
    return Difference(mean, mean - half, mean + half, 2 * float(stats.t.sf(abs(mean) / error, freedom)))


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p values for their number: of m ascending ones, max over j <= i of (m - j + 1) p_j, at most 1.

    Paper: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics
    6 (1979), 65-70.
    """
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = largest
    return corrected
