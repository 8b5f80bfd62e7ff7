"""Random half samples: how far an estimate would move with other examples.

The spread of an estimate over halves drawn without replacement estimates its standard error on the whole
(the jackknife that leaves out half). No example comes twice, as it would in a bootstrap, which makes texts
seem more alike than they are.

Paper: Shao and Wu, "A general theory for jackknife variance estimation", Annals of Statistics 17 (1989),
1176-1197.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedsdr.storage import Event

NUM_DRAWS = 200
Z = 1.959964
"""97.5 % point of the standard normal distribution: two-sided 95 % intervals."""


def half_samples(sizes: Sequence[int], rng: np.random.Generator) -> Iterator[list[NDArray[np.intp]]]:
    """Draw a half of each group's places, `NUM_DRAWS` times; of an odd number the larger half.

    Args:
        sizes: How many examples each group has, at least two.
        rng: Where the draws come from.
    """
    for _ in range(NUM_DRAWS):
        yield [rng.permutation(size)[: size - size // 2] for size in sizes]


def with_interval(value: float, draws: NDArray[np.float64]) -> Event:
    """Value with the ends of its 95 % interval, value -+ 1.96 sd of the draws (num_draws,).

    None for a value that is not a number, and for the ends where a draw is none.
    """
    half = Z * float(draws.std(ddof=1))
    found = {"value": float(value), "low": float(value) - half, "high": float(value) + half}
    return {name: number if math.isfinite(number) else None for name, number in found.items()}
