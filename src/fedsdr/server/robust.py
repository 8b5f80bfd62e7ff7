"""Robust aggregators: combine the same factor of several clients. They hold all clients in memory.

The functions behind `methods.ROBUST_AGGREGATORS`. Notation: n clients, f of them bad
(`server.num_byzantine`), v_k all factors of client k as one vector (d,). Clients are sorted by id; ties go to
the first. The robust aggregators ignore weights, since a bad client would claim a large one.

Papers: Blanchard et al., NeurIPS 2017, arXiv 1703.02757 (krum, multi-krum); El Mhamdi et al., ICML 2018,
arXiv 1802.07927 (bulyan); Yin et al., ICML 2018, arXiv 1803.01498 (median, trimmed mean).
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedsdr.messages.wire import Arrays
from fedsdr.server.validate import Update

Vectors = NDArray[np.float64]
"""v_k of every client (n, d)."""
Vector = NDArray[np.float64]
"""A value for each element of the factors (d,)."""


def mean(updates: Iterable[Update]) -> Arrays:
    """Weighted mean of each factor: (sum over k of n_k v_k) / n, in float64.

    One client's factors are returned unchanged. No update is kept after it is added.
    """
    total = 0
    sums: dict[str, NDArray[np.float64]] = {}
    for update in updates:
        total += update.num_examples
        for key, value in update.arrays.items():
            weighted = value.astype(np.float64) * update.num_examples
            sums[key] = sums[key] + weighted if key in sums else weighted
    return {key: (value / total).astype(np.float32) for key, value in sums.items()}


def median(vectors: Vectors) -> Vector:
    """Elementwise median; for an even number of clients the mean of the two middle values."""
    return np.asarray(np.median(vectors, axis=0))


def trimmed_mean(vectors: Vectors, num_byzantine: int) -> Vector:
    """Elementwise mean without the f smallest and f largest values."""
    ordered = np.sort(vectors, axis=0)
    return np.asarray(ordered[num_byzantine : len(vectors) - num_byzantine].mean(axis=0))


def krum(vectors: Vectors, num_byzantine: int) -> Vector:
    """The vector with the lowest score."""
    return np.asarray(vectors[_scores(vectors, num_byzantine).argmin()])


def multi_krum(vectors: Vectors, num_byzantine: int) -> Vector:
    """Mean of the m = n - f - 2 vectors with the lowest scores (m as in El Mhamdi et al.)."""
    best = _scores(vectors, num_byzantine).argsort(kind="stable")
    return np.asarray(vectors[best[: len(vectors) - num_byzantine - 2]].mean(axis=0))


def bulyan(vectors: Vectors, num_byzantine: int) -> Vector:
    """Choose theta = n - 2 f vectors by repeated krum, then average around their median.

    Elementwise, the theta - 2 f chosen values nearest to the median are averaged.
    """
    left = list(range(len(vectors)))
    chosen: list[int] = []
    for _ in range(len(vectors) - 2 * num_byzantine):
        best = int(_scores(vectors[left], num_byzantine).argmin())
        chosen.append(left.pop(best))
    kept = vectors[sorted(chosen)]
    distance = np.abs(kept - np.median(kept, axis=0))
    nearest = distance.argsort(axis=0, kind="stable")[: len(kept) - 2 * num_byzantine]
    return np.asarray(np.take_along_axis(kept, nearest, axis=0).mean(axis=0))


def _scores(vectors: Vectors, num_byzantine: int) -> Vector:
    """Krum's score of each vector: sum of squared distances to its n - f - 2 nearest others.

    Distances are sums of squared differences, not the expanded form, which would cancel. At least one
    neighbour is used, which matters only in the last choices of bulyan.
    """
    squared = np.array([((vectors - vector) ** 2).sum(axis=1) for vector in vectors])
    num_near = max(1, len(vectors) - num_byzantine - 2)
    near = np.sort(squared, axis=1)[:, 1 : 1 + num_near]  # column 0: the distance to itself
    return np.asarray(near.sum(axis=1))


def _each(updates: Iterable[Update], aggregate: Callable[..., Vector], *options: int) -> Arrays:
    """Apply a function of vectors to the clients' factors."""
    updates = list(updates)
    first = updates[0].arrays
    vectors = np.stack(
        [np.concatenate([update.arrays[key].ravel() for key in first]) for update in updates],
        dtype=np.float64,
    )
    target = aggregate(vectors, *options).astype(np.float32)
    ends = np.cumsum([value.size for value in first.values()])[:-1]
    parts = np.split(target, ends)
    return {key: part.reshape(first[key].shape) for key, part in zip(first, parts, strict=True)}


Aggregator = Callable[[Iterable[Update], int], Arrays]
"""Takes the updates and f."""
ROBUST: Mapping[str, Aggregator] = {
    "none": lambda updates, f: mean(updates),
    "median": lambda updates, f: _each(updates, median),
    "trimmed-mean": lambda updates, f: _each(updates, trimmed_mean, f),
    "krum": lambda updates, f: _each(updates, krum, f),
    "multi-krum": lambda updates, f: _each(updates, multi_krum, f),
    "bulyan": lambda updates, f: _each(updates, bulyan, f),
}
