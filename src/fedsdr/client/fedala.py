"""Adaptive local aggregation: a client starts a round between its own last adapter and the broadcast one.

Theta = theta_own + W (theta_sent - theta_own), elementwise, W in [0, 1]. W starts at one, which is the
broadcast adapter. It is trained by W <- clip(W - eta (theta_sent - theta_own) dL/dTheta) on a share of the
client's raw data, drawn afresh in each round, and is saved between rounds. The first time it trains until the
loss settles, afterwards for one pass.

Paper: Zhang et al., FedALA, AAAI 2023, arXiv 2212.01197; variants as in its public code. Differs: the
transmitted tensors of the shared adapter replace the model's upper layers; examples are drawn independently,
while the code takes a contiguous block; a last, smaller batch counts too; the first training is bounded
(`MOST_PASSES`).
"""

import random
from collections.abc import Sequence
from math import ceil
from statistics import pstdev

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from fedsdr.client.update import Step, summarise
from fedsdr.config import FedALA
from fedsdr.data.conversation import Conversation
from fedsdr.messages.wire import Float32
from fedsdr.model.adapters import LoraModel
from fedsdr.model.loss import response_loss
from fedsdr.model.randomness import seeded
from fedsdr.rows import Factor
from fedsdr.seeds import seed_for

SETTLED = 0.1
"""The first training of W ends when the standard deviation of the last `NUM_LOSSES` losses is below this."""
NUM_LOSSES = 10
MOST_PASSES = 30


def aggregate_locally(
    model: LoraModel,
    conversations: Sequence[Conversation],
    weights: Float32 | None,
    fedala: FedALA,
    batch_size: int,
    seed: int,
    shared_factors: Sequence[Factor] = ("A", "B"),
) -> tuple[Float32, dict[str, float]]:
    """Move the shared adapter to the client's starting point of the round, and train W.

    Args:
        model: `shared` is the broadcast adapter, `private` the client's own last shared adapter.
        conversations: The client's raw conversations.
        weights: W as saved by the client (num_values,), in the order of the layers; None at first.
        fedala: Share and eta.
        batch_size: Conversations in one step.
        seed: Seed of this client and round.
        shared_factors: The transmitted factors of the shared adapter.

    Returns:
        The new W, and the losses, steps and tokens as in `local_update`, under train/weights. A step is a
        forward and a backward pass over one batch.
    """
    model.set(("shared",), ("shared",), shared_factors)
    pairs = zip(model.parameters(("shared",)), model.parameters(("private",)), strict=True)
    parameters, mine = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
    sent, own = (parameters_to_vector(values).detach() for values in (parameters, mine))
    w = torch.ones_like(sent) if weights is None else torch.from_numpy(weights).to(sent)
    num = ceil(fedala.share * len(conversations))
    chosen = random.Random(seed_for(seed, "share")).sample(conversations, num)
    steps: list[Step] = []
    of_passes: list[float] = []
    with seeded(model.base.device, seed_for(seed, "dropout")):  # as in training
        model.training(True)
        _move(parameters, own, sent, w)
        while not of_passes or (weights is None and not _is_settled(of_passes)):
            for start in range(0, num, batch_size):
                loss, num_tokens = response_loss(model.base, chosen[start : start + batch_size])
                gradients = torch.autograd.grad(loss / num_tokens, parameters)
                gradient = torch.cat([part.flatten() for part in gradients])
                w = (w - fedala.rate * (sent - own) * gradient).clamp(0, 1)
                _move(parameters, own, sent, w)
                steps.append(Step(loss.item() / num_tokens, num_tokens))
            of_passes.append(steps[-1].loss)
    model.set(active=(), train=())
    return w.cpu().numpy(), summarise("weights", steps)


def _move(parameters: Sequence[nn.Parameter], own: Tensor, sent: Tensor, w: Tensor) -> None:
    """Set the parameters to own + W (sent - own): bit-identical to the broadcast values where W is one."""
    new = torch.lerp(own, sent, w).split([value.numel() for value in parameters])
    for value, part in zip(parameters, new, strict=True):
        value.data.copy_(part.view_as(value))


def _is_settled(of_passes: Sequence[float]) -> bool:
    """Whether the first training of W may end, judged by the loss of each pass's last batch."""
    return len(of_passes) == MOST_PASSES or (
        len(of_passes) > NUM_LOSSES and pstdev(of_passes[-NUM_LOSSES:]) < SETTLED
    )
