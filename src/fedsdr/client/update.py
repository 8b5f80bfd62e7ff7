"""The local update: the stages of a method, in order, at one client in one round.

FedSDR, round t at client k, from the broadcast shared adapter:
1. smooth: the private adapter learns on the rewritten data, min E[-log p(y~ given c, x)];
2. rectify: the shared adapter learns on the raw data, min E[-log p(y given c, x)];
both with both adapters in the forward pass. Other methods are other lists of stages (`methods`).

Paper: FedSDR, section 4. Differs: the paper leaves open the steps per stage and the optimizer; we use AdamW
with fresh state in each stage, or plain SGD.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from fedsdr.client.drift import NO_CORRECTION, Correction
from fedsdr.config import Client, FDLoRA
from fedsdr.data.batching import data_order
from fedsdr.data.conversation import Conversation
from fedsdr.errors import Diverged
from fedsdr.model.adapters import LoraModel
from fedsdr.model.loss import response_loss
from fedsdr.model.randomness import seeded
from fedsdr.progress import here, note, track, within
from fedsdr.rows import Factor, Method, Stage, View
from fedsdr.seeds import seed_for

if TYPE_CHECKING:
    from fedsdr.callbacks import OnStep

Views = Mapping[View, Sequence[Conversation]]
"""A client's training examples as conversations: raw and, where a stage needs them, distilled."""


class Step(NamedTuple):
    """Metrics of one optimizer step."""

    loss: float
    """Mean loss over its response tokens, before the step."""
    num_tokens: int


def local_update(
    model: LoraModel,
    method: Method,
    views: Views,
    training: Client,
    rate: float,
    seed: int,
    shared_factors: Sequence[Factor] = ("A", "B"),
    correction: Correction = NO_CORRECTION,
    on_step: "OnStep | None" = None,
) -> dict[str, float]:
    """Train the adapters through all stages, in place.

    Args:
        model: Holds the broadcast shared adapter and the client's private one.
        method: Its stages: what is trained, on which view, with which adapters in the forward pass.
        views: The client's conversations.
        training: Steps, batches, optimizer.
        rate: Learning rate of this round; a stage's is `Stage.rate` times it.
        seed: Seed of this client and round; data order is a function of it and the stage.
        shared_factors: Trained factors of the shared adapter (`Aggregation.factors`).
        correction: Corrects the steps of the shared adapter.
        on_step: Called after each step.

    Returns:
        For each stage, by its name: mean loss per response token over its steps, of the first and of the last
        step, and the number of steps and of response tokens.

    Raises:
        Diverged: A loss or gradient is not finite.
    """
    num_steps = [
        count_steps(training, method, number, len(views[stage.on]))
        for number, stage in enumerate(method.stages)
    ]
    num_cycles = method.cycles or max(num_steps)
    names = method.stage_names()
    seeds = [seed_for(seed, "stage", "+".join(stage.train), stage.on) for stage in method.stages]
    learning = [
        _learn(
            model, stage, views[stage.on], training, rate * stage.rate, stage_seed, shared_factors, correction
        )
        for stage, stage_seed in zip(method.stages, seeds, strict=True)
    ]
    taken: list[list[Step]] = [[] for _ in method.stages]
    for cycle in range(num_cycles):
        for number, stage in enumerate(method.stages):
            num = num_steps[number] * (cycle + 1) // num_cycles - len(taken[number])
            # Dropout always uses torch's global generator.
            with (
                within(f"{'+'.join(stage.train)} on {stage.on}"),
                seeded(model.base.device, seed_for(seeds[number], "cycle", cycle)),
            ):
                for _ in track(range(num), "steps", [1] * num):
                    taken[number].append(next(learning[number]))
                    if on_step:
                        on_step(names[number], *taken[number][-1])
    model.set(active=(), train=())
    metrics: dict[str, float] = {}
    for name, steps in zip(names, taken, strict=True):
        metrics |= summarise(name, steps)
    return metrics


def _learn(
    model: LoraModel,
    stage: Stage,
    conversations: Sequence[Conversation],
    training: Client,
    rate: float,
    seed: int,
    shared_factors: Sequence[Factor],
    correction: Correction,
) -> Iterator[Step]:
    """Yield the steps of a stage without end; steps of other stages may run in between."""
    if stage.begins_from:
        for name in stage.train:
            model.load(name, model.state(stage.begins_from))
    mix = dict(zip(stage.active, stage.mix, strict=True)) if stage.mix else None
    model.set(stage.active, stage.train, shared_factors, mix)
    model.training(True)
    parameters = [value for value in model.parameters(stage.train) if value.requires_grad]
    order = data_order(len(conversations), _step_size(training, len(conversations)), seed)
    batches = ([conversations[index] for index in chosen] for chosen in order)
    steps = train_steps(model, parameters, batches, training, rate, correction)
    draw = random.Random(seed_for(seed, "drop")).random
    while True:
        active = [name for name in stage.active if name in stage.train or draw() >= stage.drop]
        model.set(active, stage.train, shared_factors, mix)
        yield next(steps)


def train_steps(
    model: LoraModel,
    parameters: Sequence[nn.Parameter],
    batches: Iterator[Sequence[Conversation]],
    training: Client,
    rate: float,
    correction: Correction,
) -> Iterator[Step]:
    """Take an optimizer step on each batch, and report it before the next one begins.

    Raises:
        Diverged: A loss or gradient is not finite; the parameters keep their values from before the step.
    """
    kind = torch.optim.SGD if training.optimizer == "sgd" else torch.optim.AdamW
    optimizer = kind(parameters, lr=rate, weight_decay=training.weight_decay, fused=True)
    optimizer.zero_grad()  # a diverged update in this process may have left gradients
    for number, batch in enumerate(batches, start=1):
        num_tokens = sum(conversation.num_response_tokens for conversation in batch)
        weight = sum(conversation.weight for conversation in batch) or 1  # all tokens may be masked
        step_loss = 0.0
        for start in range(0, len(batch), training.batch_size):
            part = batch[start : start + training.batch_size]
            loss, _ = response_loss(model.base, part, correction.kl_term(model, part, weight / num_tokens))
            # Divided by the tokens of the whole step: accumulation must not overweight short batches. The
            # KL term is a mean over all tokens, including those with a lower weight in the loss.
            (loss / weight).backward()
            step_loss += loss.item() / weight
        correction.rehearse(model)
        correction.before_step()
        norm = nn.utils.clip_grad_norm_(parameters, training.max_grad_norm or math.inf)
        if not math.isfinite(step_loss) or not norm.isfinite():
            raise Diverged(
                f"{here()}: training diverged at step {number} (loss {step_loss:.3g}, norm of the"
                f" gradient {norm:.3g}); lower client.learning_rate = {training.learning_rate}"
            )
        optimizer.step()
        correction.after_step(rate)
        optimizer.zero_grad()
        note(f"loss {step_loss:.3f}")
        yield Step(step_loss, num_tokens)


def summarise(name: str, steps: Sequence[Step]) -> dict[str, float]:
    """Metrics of a training, in the form used by the log."""
    return {
        f"train/{name}/loss": sum(step.loss for step in steps) / len(steps),
        f"train/{name}/first_loss": steps[0].loss,
        f"train/{name}/last_loss": steps[-1].loss,
        f"train/{name}/num_steps": len(steps),
        f"train/{name}/num_tokens": sum(step.num_tokens for step in steps),
    }


def before_rounds(
    model: LoraModel,
    method: Method,
    views: Views,
    training: Client,
    seed: int,
    on_step: "OnStep | None",
) -> dict[str, float]:
    """Train the private adapter in place through the stages before round 1, at the rate of round 1.

    Runs when a client is first sampled; the result depends only on its data and seed.

    Args:
        model: Holds the client's fresh private adapter.
        method: Its stages before the rounds.
        views: The client's conversations.
        training: From `before_training`.
        seed: Seed of this client.
        on_step: Called after each step.

    Returns:
        As `local_update`, with "before-" in front of the stages' names.
    """
    rate = training.learning_rate
    metrics = local_update(
        model, method.before(), views, training, rate, seed_for(seed, "before"), on_step=on_step
    )
    return {key.replace("train/", "train/before-", 1): value for key, value in metrics.items()}


def before_training(training: Client, fdlora: FDLoRA) -> Client:
    """Training in the stages before round 1; their steps are not part of the budget of a round."""
    steps = fdlora.before_steps
    chosen = {"local_steps": steps, "local_epochs": 0} if steps else {}
    return training.model_copy(update={"budget": "per_stage", "drift_correction": "none", **chosen})


def count_steps(training: Client, method: Method, number: int, num_examples: int) -> int:
    """Optimizer steps of stage `number`, counted from 0.

    per_stage: its share of local_steps, or the steps for its share of local_epochs, rounded up to whole
    steps. per_round: local_steps divided over the stages by their shares.
    """
    share = method.stages[number].share
    if training.local_epochs:
        return math.ceil(training.local_epochs * share * num_examples / _step_size(training, num_examples))
    if training.budget == "per_stage":
        return math.ceil(training.local_steps * share)
    return method.divide(training.local_steps)[number]


def _step_size(training: Client, num_examples: int) -> int:
    """Examples in one optimizer step; a client with fewer examples uses all of them in each step."""
    return min(training.batch_size * training.accumulation, num_examples)


def learning_rate(training: Client, server_round: int, num_rounds: int) -> float:
    """Rate of a round, from `learning_rate` in round 1 to `final_rate` times it in the last."""
    if training.schedule == "constant" or num_rounds == 1:
        return training.learning_rate
    done = (server_round - 1) / (num_rounds - 1)
    fallen = done if training.schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
    return training.learning_rate * (1 - (1 - training.final_rate) * fallen)
