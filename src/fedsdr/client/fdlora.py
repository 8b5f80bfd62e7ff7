"""Adaptive fusion: combine the shared and the private adapter into one, with weights found without gradients.

A = w1 A_s + w2 A_p and B = w1 B_s + w2 B_p, so B A also contains the cross products of the two adapters. w1
and w2 minimise the loss on a few of the client's own training examples, over a few dozen trials in [-1.5,
1.5]^2.

Paper: Qi et al., FDLoRA, arXiv 2406.07925 (AdaFusion), which takes the search from LoraHub (Huang et al.,
COLM 2024, arXiv 2307.13269): the bounds, the penalty 0.05 mean |w| and 40 trials come from its public code.
Differs: DIRECT (Jones et al. 1993) replaces Nevergrad's optimizer. It is deterministic, and its first trials
are the base, and plus and minus each adapter alone, so the fusion is never worse than either adapter in loss
plus penalty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.optimize import direct
from torch import Tensor

from fedsdr.data.conversation import Conversation
from fedsdr.model.adapters import LoraModel
from fedsdr.model.loss import held_out_loss

BOUND = 1.5
PENALTY = 0.05


@dataclass(frozen=True)
class Fusion:
    """Weights of two adapters, and the results with them."""

    shared: float
    private: float
    loss: float
    """Mean loss per response token on the examples."""
    num_evaluations: int

    @property
    def objective(self) -> float:
        """The objective that the search minimises."""
        return self.loss + PENALTY * (abs(self.shared) + abs(self.private)) / 2


def fuse(
    shared: Mapping[str, Tensor], private: Mapping[str, Tensor], w_shared: float, w_private: float
) -> dict[str, Tensor]:
    """Weighted sum of each factor of two adapters of one rank, by PEFT key."""
    return {key: w_shared * value + w_private * private[key] for key, value in shared.items()}


def search_fusion(
    model: LoraModel, examples: Sequence[Conversation], num_evaluations: int, batch_size: int
) -> Fusion:
    """Find the weights of the two adapters, and replace the private adapter by their fusion.

    Args:
        model: Holds the shared adapter and the client's private one.
        examples: Some of the client's training examples.
        num_evaluations: Approximate number of trials.
        batch_size: Examples in one forward pass.
    """
    shared, private = model.state("shared"), model.state("private")
    trials: list[Fusion] = []

    def evaluate(weights: Sequence[float]) -> float:
        w_shared, w_private = map(float, weights)
        model.load("private", fuse(shared, private, w_shared, w_private))
        with model.inference(("private",)):
            loss, _ = held_out_loss(model.base, examples, batch_size)
        trials.append(Fusion(w_shared, w_private, loss, len(trials) + 1))
        return trials[-1].objective

    direct(evaluate, [(-BOUND, BOUND)] * 2, maxfun=num_evaluations)
    best = min(trials, key=lambda trial: trial.objective)
    model.load("private", fuse(shared, private, best.shared, best.private))
    return Fusion(best.shared, best.private, best.loss, len(trials))
