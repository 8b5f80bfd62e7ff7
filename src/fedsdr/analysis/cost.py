"""The cost of a model: its distance from the base on prompts that no client has.

With 200 fixed prompts p of our own (`data/drift_prompts.txt`) and the base's greedy answer a to each, of at
most 64 tokens a_1 ... a_T, end of turn included,

    C = mean over p of 1/T sum over t of KL(base(. | p, a_<t) || model(. | p, a_<t)),

with softmaxes at temperature 1 in float32, in nats per token. C is 0 for the base itself.

The answers are the base's own, so C favours models trained on the base's own words (self-distillation). The
gain (`analysis.frontier`) uses losses of true responses, which penalises them. Neither is fair alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import islice

import torch
from torch import Tensor

from fedsdr.data.batching import in_batches
from fedsdr.data.conversation import Conversation
from fedsdr.messages.wire import Arrays
from fedsdr.model.adapter_files import scaled
from fedsdr.model.adapters import LoraModel, Values
from fedsdr.model.base import Base
from fedsdr.model.loss import FEW, response_states
from fedsdr.rows import Adapter

LONGEST_ANSWER = 64
"""Maximum number of tokens of a base's answer for the cost."""


@dataclass(frozen=True)
class Scaled:
    """The model W0 + lambda dW, with dW the change of W0 by the adapters and the residual."""

    adapters: Mapping[Adapter, Mapping[str, Values]]
    """Tensors by PEFT key."""
    residual: Arrays = field(default_factory=dict)
    scale: float = 1.0
    """lambda. 0 is the base; 1 is exactly the model itself."""

    @contextmanager
    def inference(self, model: LoraModel) -> Iterator[None]:
        """Load it for many forward passes without gradient."""
        for name, state in self.adapters.items():
            model.load(name, scaled(state, self.scale))
        model.load_residual(scaled(self.residual, self.scale))
        with model.inference(tuple(self.adapters)):
            yield


def drift_prompts() -> list[str]:
    """The fixed prompts of the cost."""
    text = files("fedsdr").joinpath("data/drift_prompts.txt").read_text(encoding="utf-8")
    return text.splitlines()


def divergences(
    model: LoraModel, answers: Sequence[Conversation], models: Sequence[Scaled], batch_size: int
) -> list[list[float]]:
    """Mean KL(base || model) per token of each answer, in nats; C is the mean of a model's row.

    Args:
        model: Base and adapters; the adapters' values are overwritten.
        answers: Prompts with the base's answers, from `distill.rehearsal.base_answers`.
        models: The models.
        batch_size: Answers in one forward pass.

    Returns:
        (models, answers).
    """
    base = model.base

    def of_batch(some: list[Conversation]) -> list[list[float]]:
        with model.inference(()):
            before, _ = response_states(base, some)
        after: list[Tensor] = []
        for one in models:
            with one.inference(model):
                after.append(response_states(base, some)[0])
        with torch.inference_mode():
            return _divergences(base, before, after, [one.num_response_tokens for one in some])

    found = in_batches(answers, [len(one.ids) for one in answers], batch_size, of_batch, "KL to the base")
    model.load_residual({})
    return [[of_answer[number] for of_answer in found] for number in range(len(models))]


def _divergences(
    base: Base, before: Tensor, after: Sequence[Tensor], lengths: Sequence[int]
) -> list[list[float]]:
    """Mean KL per token of each answer (answers, models); the base's head is applied once for all models."""
    head = base.model.get_output_embeddings()
    by_token: list[list[float]] = [[] for _ in after]
    for start in range(0, len(before), FEW):
        part = slice(start, start + FEW)
        log_base = head(before[part]).float().log_softmax(dim=1)
        for values, states in zip(by_token, after, strict=True):
            log_model = head(states[part]).float().log_softmax(dim=1)
            values += ((log_base.exp() * (log_base - log_model)).sum(dim=1)).tolist()
    means = [_means(values, lengths) for values in by_token]
    return [list(of_answer) for of_answer in zip(*means, strict=True)]


def _means(values: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """Means of consecutive segments with these lengths."""
    parts = iter(values)
    return [sum(islice(parts, length)) / length for length in lengths]
