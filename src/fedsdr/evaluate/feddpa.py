"""A personalised model with a separate weight of the private adapter for each prompt.

The weight for a prompt x is max_weight times the mean cosine similarity of h(x) to h(x_1) ... h(x_S), for S
training prompts of the client, and 0 if that is negative; the shared adapter has one minus it. h is the last
hidden state of the prompt's last token, with only the private adapter in the forward pass.

Paper: Yang et al., FedDPA, NeurIPS 2024, arXiv 2403.19211, instance-wise dynamic weighting; the choice of h,
max_weight = 0.5 and S = 5 follow the public code. Differs: the S prompts are drawn once for a client, there
for each prompt; a negative weight, which the code allows, is 0; the code gives the weight to the shared
adapter, which corresponds to `feddpa.weighs = "shared"`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsdr.config import Eval
from fedsdr.data.batching import collate, in_batches
from fedsdr.data.conversation import Conversation
from fedsdr.evaluate.scores import pool
from fedsdr.evaluate.tasks import Evaluation, TestSet, evaluate
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import Base
from fedsdr.model.loss import last_states
from fedsdr.rows import Adapter
from fedsdr.storage import Event


def private_weights(
    model: LoraModel,
    known: Sequence[Conversation],
    tests: Sequence[Conversation],
    max_weight: float,
    batch_size: int,
) -> list[float]:
    """Weight of the private adapter for each test prompt, from 0 to `max_weight`.

    Args:
        model: Holds the client's private adapter.
        known: Training examples of the client, of which only the prompts are used.
        tests: Test examples, of which only the prompts are used.
        max_weight: Weight of a prompt whose state equals those of all known prompts.
        batch_size: Prompts in one forward pass.
    """
    with model.inference(("private",)):
        states = _prompt_states(model.base, [*known, *tests], batch_size)
    states = torch.nn.functional.normalize(states, dim=1)
    similar = (states[len(known) :] @ states[: len(known)].T).mean(dim=1)
    return (max_weight * similar.clamp(min=0)).tolist()


def evaluate_weighted(
    model: LoraModel, tests: TestSet, weights: Sequence[float], scoring: Eval
) -> Evaluation:
    """Score shared and private adapter together, like `tasks.evaluate`, one test example at a time.

    Slow: no two prompts share a batch. The record of a prompt contains the weight of its private adapter.
    """
    parts: dict[str, list[dict[str, float]]] = {}
    records: list[Event] = []
    for row, weight in enumerate(weights):
        one = slice(row, row + 1)
        test = TestSet(tests.examples[one], tests.raw[one], tests.distilled[one])
        mix: dict[Adapter, float] = {"shared": 1 - weight, "private": weight}
        by_domain, (record,) = evaluate(model, ("shared", "private"), test, scoring, mix)
        for domain, metrics in by_domain.items():
            parts.setdefault(domain, []).append(metrics)
        records.append(record | {"private_weight": weight})
    # Sorted by domain, as in `evaluate`.
    records.sort(key=lambda record: record["domain"])
    return {domain: pool(parts[domain]) for domain in sorted(parts)}, records


def _prompt_states(base: Base, conversations: Sequence[Conversation], batch_size: int) -> Tensor:
    """Last hidden state of the last token of each prompt (conversations, d), float32, on the CPU."""
    # Keep one response token: it is predicted at the last token of the prompt.
    prompts = [Conversation(c.ids[: c.prompt_length + 1], c.prompt_length) for c in conversations]

    def of_batch(some: list[Conversation]) -> Tensor:
        batch = collate(some, flat=base.keeps_apart)
        states = last_states(base, batch).flatten(0, 1)[torch.from_numpy(batch.positions).to(base.device)]
        return states.float().cpu()

    return torch.stack(in_batches(prompts, [len(prompt.ids) for prompt in prompts], batch_size, of_batch))
