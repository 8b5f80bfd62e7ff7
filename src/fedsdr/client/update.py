"""The local update: the stages of a method, one after the other, at one client in one round.

FedSDR, round t at client k, from the broadcast shared adapter:
1. smooth: the private adapter learns on the rewritten data, min E[-log p(y~ given c, x)];
2. rectify: the shared adapter learns on the raw data, min E[-log p(y given c, x)];
both with both adapters in the forward pass. Other methods are other lists of stages (`tables`).

Paper: FedSDR, section 4. Differs: steps per stage and optimizer are open in the paper; AdamW with
fresh state in each stage is ours; plain SGD is the other choice.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from fedsdr.config import Client, Settings
from fedsdr.data.batching import data_order
from fedsdr.data.conversation import Conversation
from fedsdr.errors import Diverged
from fedsdr.messages.wire import Arrays
from fedsdr.methods import DRIFT_CORRECTIONS, Factor, Method, View
from fedsdr.model.adapters import Adapters
from fedsdr.model.base import Base
from fedsdr.model.loss import response_loss
from fedsdr.progress import track
from fedsdr.seeds import seed_for

Pairs = Sequence[tuple[torch.nn.Parameter, torch.Tensor]]
"""Parameters of the shared adapter, each with a tensor of its shape."""


def local_update(
    base: Base,
    adapters: Adapters,
    method: Method,
    views: Mapping[View, Sequence[Conversation]],
    settings: Client,
    rate: float,
    seed: int,
    what: str,
    shared_factors: Sequence[Factor] = ("A", "B"),
    shift: Arrays | None = None,
) -> dict[str, float]:
    """Train the adapters through all stages, in place.

    Args:
        base: The frozen base.
        adapters: Holding the broadcast shared adapter and the client's private one.
        method: Its stages: what learns, on which view, with what in the forward pass.
        views: The client's conversations, raw and, where a stage wants them, distilled.
        settings: Steps, batches, optimizer.
        rate: Learning rate of this round.
        seed: Seed of this client and round; data order is a function of it and the stage.
        what: Whose update this is, for the progress line.
        shared_factors: Which factors of the shared adapter learn, as the aggregation wants it.
        shift: c - c_k by PEFT key of the shared adapter, where control variates steer the steps
            (`client.control_variates`).

    Returns:
        For each stage, by its name: mean loss per response token over its steps, of the first and of
        the last step, number of steps and of response tokens.
    """
    metrics: dict[str, float] = {}
    anchors: Pairs = []
    if DRIFT_CORRECTIONS[settings.drift_correction].is_proximal:
        anchors = [(value, value.detach().clone()) for value in adapters.parameters(("shared",))]
    shifts: Pairs = []
    if shift:
        tensors = dict(zip(adapters.state("shared"), adapters.parameters(("shared",)), strict=True))
        shifts = [
            (tensors[key], torch.from_numpy(more).to(tensors[key].device)) for key, more in shift.items()
        ]
    for number, (name, stage) in enumerate(zip(method.stage_names(), method.stages, strict=True)):
        learner = "+".join(stage.train)
        num_steps = count_steps(settings, len(method.stages), number, len(views[stage.on]))
        stage_seed = seed_for(seed, "stage", learner, stage.on)
        mix = dict(zip(stage.active, stage.mix, strict=True)) if stage.mix else None
        adapters.set(stage.active, stage.train, shared_factors, mix)
        pulled, shifted = (
            [(value, other) for value, other in pairs if value.requires_grad] for pairs in (anchors, shifts)
        )
        adapters.training(True)
        with torch.random.fork_rng():  # dropout draws from torch's own generator and takes no other
            torch.manual_seed(stage_seed)
            progress = f"{what}: {learner} on {stage.on}"
            losses, num_tokens = _learn(
                base,
                [p for p in adapters.parameters(stage.train) if p.requires_grad],
                pulled,
                shifted,
                views[stage.on],
                settings,
                rate,
                num_steps,
                stage_seed,
                progress,
            )
        metrics |= {
            f"train/{name}/loss": sum(losses) / len(losses),
            f"train/{name}/first_loss": losses[0],
            f"train/{name}/last_loss": losses[-1],
            f"train/{name}/num_steps": len(losses),
            f"train/{name}/num_tokens": num_tokens,
        }
    adapters.set(active=(), train=())
    return metrics


def _learn(
    base: Base,
    parameters: Sequence[torch.nn.Parameter],
    pulled: Pairs,
    shifted: Pairs,
    conversations: Sequence[Conversation],
    settings: Client,
    rate: float,
    num_steps: int,
    seed: int,
    progress: str,
) -> tuple[list[float], int]:
    """Take `num_steps` steps of the optimizer; return the loss of each and the number of response tokens.

    FedProx adds mu / 2 sum of (w - w_t)^2 to the loss, over the `pulled` pairs of a parameter w and its
    value w_t as the server sent it; so mu (w - w_t) to the gradient. The losses returned are without it.
    Paper: Li et al., arXiv 1812.06127, equation 2.

    SCAFFOLD adds c - c_k to the gradient, over the `shifted` pairs of a parameter and that. It is done after
    the optimizer's step, which for plain SGD is the same, so that AdamW does not scale it.
    """
    kind = torch.optim.SGD if settings.optimizer == "sgd" else torch.optim.AdamW
    optimizer = kind(parameters, lr=rate, weight_decay=settings.weight_decay, fused=True)
    optimizer.zero_grad()  # an update that diverged in this process left its own
    order = data_order(len(conversations), _step_size(settings, len(conversations)), seed)
    losses: list[float] = []
    num_tokens = 0
    for _, chosen in zip(track(range(num_steps), progress, "steps"), order, strict=False):
        batch = [conversations[index] for index in chosen]
        step_tokens = sum(conversation.num_response_tokens for conversation in batch)
        step_loss = 0.0
        for start in range(0, len(batch), settings.batch_size):
            loss, _ = response_loss(base, batch[start : start + settings.batch_size])
            # Divided by the tokens of the whole step: accumulation must not weigh short batches more.
            (loss / step_tokens).backward()
            step_loss += loss.item() / step_tokens
        for value, anchor in pulled:
            assert value.grad is not None
            value.grad.add_(value.detach() - anchor, alpha=settings.mu)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or math.inf)
        if not math.isfinite(step_loss) or not norm.isfinite():
            raise Diverged(
                f"{progress}: training diverged at step {len(losses) + 1} (loss {step_loss:.3g}, norm of the"
                f" gradient {norm:.3g}); lower client.learning_rate = {settings.learning_rate}"
            )
        optimizer.step()
        for value, difference in shifted:
            value.data.add_(difference, alpha=-rate)
        optimizer.zero_grad()
        losses.append(step_loss)
        num_tokens += step_tokens
    return losses, num_tokens


def _step_size(settings: Client, num_examples: int) -> int:
    """Examples in one optimizer step; a client with fewer examples takes all of them in each step."""
    return min(settings.batch_size * settings.accumulation, num_examples)


def before_rounds(
    base: Base,
    adapters: Adapters,
    method: Method,
    views: Mapping[View, Sequence[Conversation]],
    settings: Settings,
    seed: int,
    what: str,
) -> dict[str, float]:
    """Train the private adapter through the stages before round 1, in place, at the rate of round 1.

    Whenever a client is first drawn: what it learns here depends on its data and seed alone.

    Args:
        base: The frozen base.
        adapters: Holding the client's fresh private adapter.
        method: Its stages before the rounds.
        views: The client's conversations.
        settings: The run's.
        seed: Seed of this client.
        what: Whose update this is, for the progress line.

    Returns:
        As `local_update`, with "before-" in front of the stages' names.
    """
    metrics = local_update(
        base,
        adapters,
        method.before(),
        views,
        before_settings(settings),
        settings.client.learning_rate,
        seed_for(seed, "before"),
        what,
    )
    return {key.replace("train/", "train/before-", 1): value for key, value in metrics.items()}


def before_settings(settings: Settings) -> Client:
    """Steps of the stages before round 1; they are beside the budget of a round."""
    steps = settings.fdlora.before_steps
    chosen = {"local_steps": steps, "local_epochs": 0} if steps else {}
    return settings.client.model_copy(update={"budget": "per_stage", "drift_correction": "none", **chosen})


def count_steps(settings: Client, num_stages: int, number: int, num_examples: int) -> int:
    """Optimizer steps of stage `number`, counted from 0.

    per_stage: local_steps, or as many as local_epochs passes take, rounded up to whole steps.
    per_round: local_steps divided evenly; what does not divide goes to the last stages.
    """
    if settings.local_epochs:
        return math.ceil(settings.local_epochs * num_examples / _step_size(settings, num_examples))
    if settings.budget == "per_stage":
        return settings.local_steps
    share, rest = divmod(settings.local_steps, num_stages)
    return share + (number >= num_stages - rest)


def learning_rate(settings: Client, server_round: int, num_rounds: int) -> float:
    """Rate of a round, from `learning_rate` in round 1 to `final_rate` times it in the last."""
    if settings.schedule == "constant" or num_rounds == 1:
        return settings.learning_rate
    done = (server_round - 1) / (num_rounds - 1)
    fallen = done if settings.schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
    return settings.learning_rate * (1 - (1 - settings.final_rate) * fallen)
