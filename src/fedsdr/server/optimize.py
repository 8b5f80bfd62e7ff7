"""Server optimizer: how the server steps from its state towards the aggregated target.

Notation: x the shared adapter before the round, D = target - x the mean change, m and v moments saved between
rounds (initially zero and tau^2), eta = server.eta, b1 = server.beta1, b2 = server.beta2, tau = server.tau.
All steps are elementwise, in float64.

The functions behind `methods.OPTIMIZERS`. D is the opposite of a gradient, so steps are added.

Papers: McMahan et al., AISTATS 2017, arXiv 1602.05629 (fedavg); Hsu et al. 2019, arXiv 1909.06335
(fedavgm); Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295, algorithm 2
(fedadagrad, fedadam, fedyogi); Jhunjhunwala et al., FedExP, ICLR 2023, arXiv 2301.09604, algorithm 1
(fedexp). As in Reddi et al., and unlike Flower 1.42, v begins at tau^2 and there is no bias correction.
"""

from collections import ChainMap
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedsdr.config import Server
from fedsdr.messages.wire import Arrays
from fedsdr.plugins import FUNCTIONS
from fedsdr.rows import Optimizer

Float64 = NDArray[np.float64]
Moments = dict[str, Float64]
"""m and v of each tensor, as "m/<key>" and "v/<key>"; empty before the first step and for fedavg. The
strategy also stores the clients' mean control variates here, as "control_variates"."""


def _momentum(share: Callable[[Server], float]) -> "Optimize":
    """Step with momentum: m <- b1 m + share D; x <- x + eta m."""

    def step(current: Arrays, target: Arrays, moments: Moments, server: Server) -> tuple[Arrays, Moments]:
        new: Arrays = {}
        kept: Moments = {}
        for key, change in _changes(current, target):
            m = server.beta1 * moments.get(f"m/{key}", 0.0) + share(server) * change
            kept[f"m/{key}"] = m
            new[key] = _moved(current[key], server.eta * m)
        return new, kept

    return step


def _adaptive(second: Callable[[Float64, Float64, float], Float64]) -> "Optimize":
    """Step adaptively: m <- b1 m + (1 - b1) D; v <- second(v, D^2); x <- x + eta m / (sqrt(v) + tau)."""

    def step(current: Arrays, target: Arrays, moments: Moments, server: Server) -> tuple[Arrays, Moments]:
        new: Arrays = {}
        kept: Moments = {}
        for key, change in _changes(current, target):
            m = server.beta1 * moments.get(f"m/{key}", 0.0) + (1 - server.beta1) * change
            v = second(moments.get(f"v/{key}", np.full_like(change, server.tau**2)), change**2, server.beta2)
            kept |= {f"m/{key}": m, f"v/{key}": v}
            new[key] = _moved(current[key], server.eta * m / (np.sqrt(v) + server.tau))
        return new, kept

    return step


def extrapolation(current: Arrays, target: Arrays, spread: float, tau: float) -> float:
    """Step size of fedexp, which extrapolates beyond the target if the clients' changes diverge.

    max(1, s / (2 (|D|^2 + tau^2))), with s the mean over the clients of |D_k|^2, D_k client k's change.
    """
    squared = sum(float((change**2).sum()) for _, change in _changes(current, target))
    return max(1.0, spread / (2 * (squared + tau**2)))


def _scaled(current: Arrays, target: Arrays, moments: Moments, server: Server) -> tuple[Arrays, Moments]:
    """X <- x + eta D."""
    return {key: _moved(current[key], server.eta * change) for key, change in _changes(current, target)}, {}


def _changes(current: Arrays, target: Arrays) -> list[tuple[str, Float64]]:
    return [(key, target[key].astype(np.float64) - value) for key, value in current.items()]


def _moved(value: NDArray[np.float32], step: Float64) -> NDArray[np.float32]:
    return (value + step).astype(np.float32)


Optimize = Callable[[Arrays, Arrays, Moments, Server], tuple[Arrays, Moments]]
BUILT_IN: dict[str, Optimize] = {
    "fedavg": lambda current, target, moments, server: (target, {}),  # x <- x + D
    "fedavgm": _momentum(lambda server: 1.0),
    "fedavgm-damped": _momentum(lambda server: 1 - server.beta1),
    "fedexp": _scaled,  # with eta the `extrapolation`
    "fedadagrad": _adaptive(lambda v, square, beta2: v + square),
    "fedadam": _adaptive(lambda v, square, beta2: beta2 * v + (1 - beta2) * square),
    "fedyogi": _adaptive(lambda v, square, beta2: v - (1 - beta2) * square * np.sign(v - square)),
}
OPTIMIZE: Mapping[str, Optimize] = ChainMap(FUNCTIONS[Optimizer], BUILT_IN)
