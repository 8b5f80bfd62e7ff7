"""Server optimizer: how the server steps from its previous state towards the combined target.

The functions behind `tables.OPTIMIZERS`.
"""

from collections.abc import Callable, Mapping

from fedsdr.server.combine import Arrays


def fedavg(current: Arrays, target: Arrays) -> Arrays:
    """Take the target. Paper: McMahan et al., AISTATS 2017, arXiv 1602.05629."""
    del current
    return target


OPTIMIZE: Mapping[str, Callable[[Arrays, Arrays], Arrays]] = {"fedavg": fedavg}
