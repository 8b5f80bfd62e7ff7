"""Combination: the clients' LoRA factors become one target.

The functions behind `tables.COMBINATIONS`. Updates come in the order of client ids, so that the
order of arrival changes no byte.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedsdr.server.guard import Update

Arrays = dict[str, NDArray[np.float32]]


def average(updates: Sequence[Update]) -> Arrays:
    """Weighted mean of each factor: R <- sum over k of (n_k / n) R_k.

    Equal to R + sum of (n_k / n) dR_k, as the paper writes it, since the weights sum to one. Sums
    are float64, so one client's factors come back unchanged. The mean of A and of B is not the
    mean of B A; combinations that mend this are other rows.

    Paper: FedSDR, section 4; Zhang et al., FedIT, arXiv 2305.05644.

    Args:
        updates: At least one, ordered by client id.

    Returns:
        A (rank, d_in) and B (d_out, rank) by PEFT key, float32.
    """
    total = sum(update.num_examples for update in updates)
    return {
        key: np.asarray(
            sum(update.num_examples / total * update.arrays[key].astype(np.float64) for update in updates),
            dtype=np.float32,
        )
        for key in updates[0].arrays
    }


COMBINE: Mapping[str, Callable[[Sequence[Update]], Arrays]] = {"average": average}
