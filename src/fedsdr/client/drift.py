"""Drift corrections: what they add to each optimizer step of the shared adapter.

Notation: w a number of the shared adapter, w_t the same as the server sent it, g its gradient, lr the rate.

    fedprox    before the step: g <- g + mu (w - w_t), from the term mu / 2 sum (w - w_t)^2 of the loss
    scaffold   after the step:  w <- w - lr (c - c_k), which for plain SGD is the same as g <- g + c - c_k

After the step, so that AdamW does not scale it. The losses that are reported are without either.

Papers: Li et al., FedProx, MLSys 2020, arXiv 1812.06127, equation 2; Karimireddy et al., SCAFFOLD, ICML 2020,
arXiv 1910.06378, algorithm 1 (`client.scaffold` has the control variates).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedsdr.model.adapters import LoraModel

if TYPE_CHECKING:
    from fedsdr.messages.wire import Arrays

Pairs = Sequence[tuple[nn.Parameter, Tensor]]
"""Parameters of the shared adapter, each with a tensor of its shape."""


@dataclass(frozen=True)
class Drift:
    """What is added to the steps of those parameters that learn; by default nothing."""

    anchors: Pairs = ()
    """w and w_t."""
    mu: float = 0.0
    shifts: Pairs = ()
    """w and c - c_k."""

    def before_step(self) -> None:
        """Change the gradients."""
        for value, anchor in self.anchors:
            if value.requires_grad:
                assert value.grad is not None
                value.grad.add_(value.detach() - anchor, alpha=self.mu)

    def after_step(self, rate: float) -> None:
        """Change the values."""
        for value, shift in self.shifts:
            if value.requires_grad:
                value.data.add_(shift, alpha=-rate)


NO_DRIFT = Drift()


def towards_broadcast(model: LoraModel, mu: float) -> Drift:
    """FedProx: hold the shared adapter to the values that it has now."""
    return Drift(anchors=[(w, w.detach().clone()) for w in model.parameters(("shared",))], mu=mu)


def by_control_variates(model: LoraModel, shift: "Arrays") -> Drift:
    """SCAFFOLD: steer by c - c_k, by PEFT key of the shared adapter."""
    parameters = dict(zip(model.shapes("shared"), model.parameters(("shared",)), strict=True))
    return Drift(
        shifts=[(parameters[key], torch.from_numpy(c).to(parameters[key].device)) for key, c in shift.items()]
    )
