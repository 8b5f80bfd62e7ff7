"""Drift corrections: terms added to each optimizer step of the shared adapter.

Notation: w a parameter of the shared adapter, w_t its broadcast value, g its gradient, lr the rate.

    fedprox    before the step: g <- g + mu (w - w_t), from the term mu / 2 sum (w - w_t)^2 of the loss
    l2         before the step: g <- g + mu w, from the term mu / 2 sum w^2
    kl         with the loss:   mu mean of KL(p_0 || p) over the response tokens, p the model's distribution
               of a token, p_0 that of the base without adapters
    not-true   the same for the distributions over all tokens except the label
    rehearsal  with the loss:   mu mean of KL(p_0 || p) over the tokens of the base's own answers to
               synthetic prompts (`distill.rehearsal`), p the distribution of the global model
    scaffold   after the step:  w <- w - lr (c - c_k), which for plain SGD is the same as g <- g + c - c_k

SCAFFOLD acts after the step, so that AdamW does not scale it. The reported losses include none of these.

Papers: Li et al., FedProx, MLSys 2020, arXiv 1812.06127, equation 2; Li et al., L2-SP, ICML 2018, arXiv
1802.01483 (l2: w = 0 is the initial adapter, except for A); Li and Hoiem, LwF, ECCV 2016, arXiv 1606.09282
(kl: the old model's outputs on the new data); Lee et al., "Preservation of the Global Knowledge by Not-True
Distillation in Federated Learning" (FedNTD), NeurIPS 2022, arXiv 2106.03097 (not-true; differs: the teacher
is the base, there the broadcast model; temperature 1, there a setting, 3 by default in the authors' code);
Karimireddy et al., SCAFFOLD, ICML 2020, arXiv 1910.06378, algorithm 1 (`client.scaffold` has the variates).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from fedsdr.data.batching import data_order
from fedsdr.model.adapters import LoraModel
from fedsdr.model.loss import KlTerm, response_loss, response_states

if TYPE_CHECKING:
    from fedsdr.data.conversation import Conversation
    from fedsdr.messages.wire import Arrays

Pairs = Sequence[tuple[nn.Parameter, Tensor]]
"""Parameters of the shared adapter, each with a tensor of its shape."""


@dataclass(frozen=True)
class Correction:
    """Terms added to the steps of the trained parameters; none by default."""

    anchors: Pairs = ()
    """w and w_t."""
    mu: float = 0.0
    shifts: Pairs = ()
    """w and c - c_k."""
    matches: Literal["nothing", "base", "base-but-label"] = "nothing"
    """Which output distributions are pulled towards the base's."""
    rehearsed: Iterator[Sequence["Conversation"]] = field(default_factory=lambda: iter(()))
    """For each step, a batch of the base's own answers, whose tokens have weight 0."""

    def kl_term(
        self, model: LoraModel, conversations: Sequence["Conversation"], share: float
    ) -> KlTerm | None:
        """The term that pulls towards the base on these conversations, in steps of the shared adapter.

        Args:
            model: With the adapters of this step.
            conversations: Conversations of one forward pass.
            share: Factor on mu: the divisor of the summed losses over the number of tokens.
        """
        if self.matches == "nothing" or not _learns(model):
            return None
        return KlTerm(_base_states(model, conversations), share * self.mu, self.matches == "base")

    def rehearse(self, model: LoraModel) -> None:
        """Add the gradient of mu times the mean KL on the next batch of the base's own answers, if any."""
        if not _learns(model) or not (batch := next(self.rehearsed, ())):
            return
        with model.with_only(("shared",)):
            term = KlTerm(_base_states(model, batch), self.mu)
            loss, num_tokens = response_loss(model.base, batch, term)
            (loss / num_tokens).backward()

    def before_step(self) -> None:
        """Modify the gradients."""
        for value, anchor in self.anchors:
            if value.requires_grad:
                assert value.grad is not None
                value.grad.add_(value.detach() - anchor, alpha=self.mu)

    def after_step(self, rate: float) -> None:
        """Modify the parameters."""
        for value, shift in self.shifts:
            if value.requires_grad:
                value.data.add_(shift, alpha=-rate)


def _learns(model: LoraModel) -> bool:
    return any(value.requires_grad for value in model.parameters(("shared",)))


def _base_states(model: LoraModel, conversations: Sequence["Conversation"]) -> Tensor:
    with model.with_only(()), torch.no_grad():
        return response_states(model.base, conversations)[0]


NO_CORRECTION = Correction()


def towards_broadcast(model: LoraModel, mu: float) -> Correction:
    """FedProx: pull the shared adapter towards its current values."""
    return Correction(anchors=[(w, w.detach().clone()) for w in model.parameters(("shared",))], mu=mu)


def towards_zero(model: LoraModel, mu: float) -> Correction:
    """L2: pull the shared adapter towards zero."""
    return Correction(anchors=[(w, torch.zeros_like(w)) for w in model.parameters(("shared",))], mu=mu)


BY_MU: Mapping[str, Callable[[LoraModel, float], Correction]] = {
    "fedprox": towards_broadcast,
    "l2": towards_zero,
    "kl": lambda model, mu: Correction(mu=mu, matches="base"),
    "not-true": lambda model, mu: Correction(mu=mu, matches="base-but-label"),
}
"""The drift corrections weighted by `client.mu`, but rehearsal; the model holds the broadcast adapter."""


def by_rehearsal(rehearsal: Sequence["Conversation"], mu: float, size: int, seed: int) -> Correction:
    """Pull towards the base on its own answers, `size` of them in each step of the shared adapter."""
    order = data_order(len(rehearsal), min(size, len(rehearsal)), seed)
    return Correction(mu=mu, rehearsed=([rehearsal[index] for index in chosen] for chosen in order))


def by_control_variates(model: LoraModel, shift: "Arrays") -> Correction:
    """SCAFFOLD: correct by c - c_k, by PEFT key of the shared adapter."""
    parameters = dict(zip(model.shapes("shared"), model.parameters(("shared",)), strict=True))
    return Correction(
        shifts=[(parameters[key], torch.from_numpy(c).to(parameters[key].device)) for key, c in shift.items()]
    )
