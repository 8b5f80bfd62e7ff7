"""Control variates: the correction of a client's steps by the other clients, and the client's contribution.

Notation: x the broadcast shared adapter, y the adapter after K local steps of rate lr, c_k the control
variate of client k and c the server's, their mean; all are zero at first. SCAFFOLD, option II:

    each step   y <- y - lr (g + c - c_k), with g the gradient
    afterwards  c_k+ = c_k - c + (x - y) / (K lr), which is the mean of the K gradients
    to send     dc_k = c_k+ - c_k = (x - y) / (K lr) - c

With an optimizer other than plain SGD, c_k is the mean of its steps, divided by lr. All variates cover the
transmitted part of the shared adapter, as one vector (num_values,), packed as in `wire`. The step is in
`client.drift`, c in `server.strategy`.

c_k+ is computed from dc_k as sent, so a single client keeps c_k = c to the last bit, and trains as without a
correction. A client does not learn whether the server used its message: if the message was dropped, the
client still keeps c_k+, and c lacks it.

Paper: Karimireddy et al., SCAFFOLD, ICML 2020, arXiv 1910.06378, algorithm 1, option II.
"""

from dataclasses import dataclass

import numpy as np

from fedsdr.messages.wire import Float32


@dataclass(frozen=True)
class ControlVariates:
    """c and c_k at the beginning of a client's round."""

    server: Float32
    own: Float32

    @property
    def shift(self) -> Float32:
        """The correction of each gradient: c - c_k."""
        return self.server - self.own

    def change(self, x: Float32, y: Float32, num_steps: float, rate: float) -> Float32:
        """Compute dc_k after `num_steps` steps (K, over all stages that train the shared adapter)."""
        moved = x.astype(np.float64) - y
        return (moved / (num_steps * rate) - self.server).astype(np.float32)
