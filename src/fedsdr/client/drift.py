"""Drift corrections: what they add to each optimizer step of the shared adapter.

Notation: w a number of the shared adapter, w_t the same as the server sent it, g its gradient, lr the rate.

    fedprox    before the step: g <- g + mu (w - w_t), from the term mu / 2 sum (w - w_t)^2 of the loss
    l2         before the step: g <- g + mu w, from the term mu / 2 sum w^2
    kl         with the loss:   mu mean of KL(p_0 || p) over the response tokens, p the model's distribution
               of a token, p_0 that of the base without adapters
    not-true   the same of the distributions over all tokens but the label
    scaffold   after the step:  w <- w - lr (c - c_k), which for plain SGD is the same as g <- g + c - c_k

After the step, so that AdamW does not scale it. The losses that are reported are without any of these.

Papers: Li et al., FedProx, MLSys 2020, arXiv 1812.06127, equation 2; Li et al., L2-SP, ICML 2018, arXiv
1802.01483 (l2: w = 0 is where the adapter starts, up to A); Li and Hoiem, LwF, ECCV 2016, arXiv 1606.09282
(kl: the old model's outputs on the new data); Lee et al., "Preservation of the Global Knowledge by Not-True
Distillation in Federated Learning" (FedNTD), NeurIPS 2022, arXiv 2106.03097 (not-true; differs: the teacher
is the base, there the broadcast model; temperature 1, there a setting, 3 by default in the authors' code);
Karimireddy et al., SCAFFOLD, ICML 2020, arXiv 1910.06378, algorithm 1 (`client.scaffold` has the variates).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from fedsdr.model.adapters import LoraModel
from fedsdr.model.loss import Pull, response_states

if TYPE_CHECKING:
    from fedsdr.data.conversation import Conversation
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
    matches: Literal["nothing", "base", "base-but-label"] = "nothing"
    """Which distributions are held to the base's."""

    def pull(self, model: LoraModel, conversations: Sequence["Conversation"], share: float) -> Pull | None:
        """What holds the model to the base on these conversations, in steps of the shared adapter.

        Args:
            model: At the adapters of this step.
            conversations: Of one forward pass.
            share: What mu is multiplied by: by what the losses' sum is divided, over the number of tokens.
        """
        learns = any(value.requires_grad for value in model.parameters(("shared",)))
        if self.matches == "nothing" or not learns:
            return None
        with model.without_adapters(), torch.no_grad():
            states, _ = response_states(model.base, conversations)
        return Pull(states, share * self.mu, self.matches == "base")

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


def towards_zero(model: LoraModel, mu: float) -> Drift:
    """L2: hold the shared adapter to zero."""
    return Drift(anchors=[(w, torch.zeros_like(w)) for w in model.parameters(("shared",))], mu=mu)


ANCHORS: Mapping[str, Callable[[LoraModel, float], Drift]] = {
    "fedprox": towards_broadcast,
    "l2": towards_zero,
    "kl": lambda model, mu: Drift(mu=mu, matches="base"),
    "not-true": lambda model, mu: Drift(mu=mu, matches="base-but-label"),
}
"""The drift corrections that `client.mu` weighs; the model is at the broadcast adapter."""


def by_control_variates(model: LoraModel, shift: "Arrays") -> Drift:
    """SCAFFOLD: steer by c - c_k, by PEFT key of the shared adapter."""
    parameters = dict(zip(model.shapes("shared"), model.parameters(("shared",)), strict=True))
    return Drift(
        shifts=[(parameters[key], torch.from_numpy(c).to(parameters[key].device)) for key, c in shift.items()]
    )
