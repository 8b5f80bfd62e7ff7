"""Limits on one client's influence on the mean: a cap on its weight, and on the norm of its change.

Both compare a client with the median client, which a minority of bad clients cannot move beyond the good
ones. They apply to the mean only: robust aggregators use no weights and tolerate large changes, and the
central mean of differential privacy clips and weights all clients equally.
"""

import statistics
from collections.abc import Iterable, Mapping

import numpy as np

from fedsdr.config import Settings
from fedsdr.messages.wire import Arrays, pairs
from fedsdr.methods import METHODS
from fedsdr.server.validate import Update
from fedsdr.storage import Event


def has_limits(settings: Settings) -> bool:
    """Whether the server takes a weighted mean of the clients' changes, to which the limits apply."""
    is_mean = settings.server.robust == "none" and settings.privacy.kind != "central"
    return is_mean and METHODS[settings.method].shares


def cap_weights(prepared: Iterable[Event], ratio: int) -> None:
    """Add a `weight` to each client whose num_train exceeds a multiple of the median of all clients.

    For an even number of clients it is the lower of the two middle values; otherwise one of two clients would
    set its own limit.

    Args:
        prepared: Each client's report from `prepare`, with `num_train`.
        ratio: `server.max_weight`; 0: no cap.
    """
    prepared = list(prepared)
    most = ratio * statistics.median_low([int(event["num_train"]) for event in prepared])
    for event in prepared:
        if 0 < most < event["num_train"]:
            event["weight"] = most


def change_norm(update: Update, sent: Arrays, is_fresh: bool) -> float:
    """Euclidean norm of an update's change to the shared adapter.

    Args:
        update: A reply that passed validation.
        sent: The shared adapter as it was broadcast.
        is_fresh: Whether clients start the round with new factors, B = 0; their change is then B A.
    """
    if is_fresh:  # |B A|^2 is the trace of (B^T B) (A A^T), both of size r x r
        wide = {key: value.astype(np.float64) for key, value in update.arrays.items()}
        squares = [((wide[b].T @ wide[b]) * (wide[a] @ wide[a].T)).sum() for a, b in pairs(update.arrays)]
    else:  # a client of smaller rank started from the first ranks of the broadcast
        squares = [
            np.square(value.astype(np.float64) - sent[key][tuple(map(slice, value.shape))]).sum()
            for key, value in update.arrays.items()
        ]
    return float(np.sqrt(sum(squares)))


def too_large(norms: Mapping[str, float], ratio: int) -> dict[str, str]:
    """Name the clients whose change exceeds a multiple of the round's median, with the reason.

    For an even number of clients the median is the mean of the two middle values, so with two clients neither
    exceeds it twice: the norms cannot show which one is bad. Changes of control variates have no such limit:
    for honest clients with few and with many steps they differ by more than ten times.

    Args:
        norms: Client id -> norm of its change, for all replies that passed validation.
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
