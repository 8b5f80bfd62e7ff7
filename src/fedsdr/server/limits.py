"""Limits on what one client may do to the mean: a cap on its weight, and on the norm of its change.

Both compare a client with the median client, which a minority of bad ones cannot move beyond the good ones.
They are for the mean: robust aggregators use no weights and withstand large changes, and the central mean of
differential privacy weighs all clients alike and clips.
"""

import statistics
from collections.abc import Iterable, Mapping

import numpy as np

from fedsdr.messages.wire import Arrays, pairs
from fedsdr.server.validate import Update
from fedsdr.storage import Event


def cap_weights(prepared: Iterable[Event], ratio: int) -> None:
    """Give each client a `weight` whose num_train is above so many times the median of all clients.

    Of an even number of clients it is the lower of the middle two: else one of two clients would set its own
    limit.

    Args:
        prepared: What each client of the federation reported when it prepared, with `num_train`.
        ratio: `server.max_weight`; 0: no cap.
    """
    prepared = list(prepared)
    most = ratio * statistics.median_low([int(event["num_train"]) for event in prepared])
    for event in prepared:
        if 0 < most < event["num_train"]:
            event["weight"] = most


def change_norm(update: Update, sent: Arrays, is_fresh: bool) -> float:
    """Euclidean norm of what an update changes in the shared adapter.

    Args:
        update: A reply that passed validation.
        sent: The shared adapter as it was broadcast.
        is_fresh: Whether clients begin the round with new factors, B = 0; their change is then B A.
    """
    if is_fresh:  # |B A|^2 is the trace of (B^T B) (A A^T), which are of rank r alone
        wide = {key: value.astype(np.float64) for key, value in update.arrays.items()}
        squares = [((wide[b].T @ wide[b]) * (wide[a] @ wide[a].T)).sum() for a, b in pairs(update.arrays)]
    else:  # a client of smaller rank began with the first ranks of what was sent
        squares = [
            np.square(value.astype(np.float64) - sent[key][tuple(map(slice, value.shape))]).sum()
            for key, value in update.arrays.items()
        ]
    return float(np.sqrt(sum(squares)))


def too_large(norms: Mapping[str, float], ratio: int) -> dict[str, str]:
    """Name the clients whose change is above so many times the round's median, and why.

    Of an even number of clients the median is the mean of the middle two, so of two clients none is above it
    twice: which of them is the bad one, no norm says. Changes of control variates have no such limit: those
    of honest clients with few and with many steps differ by more than ten times.

    Args:
        norms: Client id -> norm of its change; of all replies that passed validation.
        ratio: `server.max_change`; 0: no limit.
    """
    if not norms or not ratio:
        return {}
    median = statistics.median(norms.values())
    return {
        client: f"its change of the shared adapter has norm {norm:.3g}, above server.max_change = {ratio}"
        f" times the round's median {median:.3g}"
        for client, norm in norms.items()
        if norm > ratio * median
    }
