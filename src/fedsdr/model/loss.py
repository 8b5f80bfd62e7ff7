"""Cross entropy of response tokens, without storing the logits of a whole batch.

The output head is applied at response positions only, in chunks, and the gradient of each chunk with respect
to the hidden states is computed in the forward pass; the head itself is frozen. A full (batch, sequence,
vocabulary) float32 tensor would take hundreds of megabytes, several times over.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsdr.data.batching import Batch, by_length, collate, in_batches
from fedsdr.data.conversation import Conversation
from fedsdr.model.attention import in_one_row
from fedsdr.model.base import Base

CHUNK = 256
"""Positions whose logits are in memory at a time."""
FEW = 32
"""Positions whose logits are in float32 at a time: as many as fit into CPU caches."""


class KlTerm(NamedTuple):
    """A term weight * KL(q || p) of the loss, summed over the response tokens; only its gradient is computed.

    p is the model's distribution of a token, q the teacher's.
    """

    teacher_states: Tensor
    """They give q through the same output head (num_response_tokens, d)."""
    weight: float
    includes_label: bool = True
    """Whether p and q cover all tokens, or all except the label."""

    def gradient(self, logits: Tensor, given: Tensor, targets: Tensor) -> Tensor:
        """Weight (p - q), from the logits of both (n, vocabulary) and the labels (n, 1)."""
        if not self.includes_label:
            logits, given = (values.scatter(1, targets, -math.inf) for values in (logits, given))
        change = logits.softmax(dim=1, dtype=torch.float32) - given.softmax(dim=1, dtype=torch.float32)
        return change * self.weight


class _HeadLoss(torch.autograd.Function):
    """Sum of cross entropies of a frozen linear head; the gradient is computed in forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor | None,
        kl_term: KlTerm | None,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            logits = torch.nn.functional.linear(hidden[part], weight, bias)
            for at in range(start, start + len(logits), FEW):
                here = slice(at, min(at + FEW, start + CHUNK))
                few, wanted = logits[at - start :][:FEW], targets[here, None]
                change = None
                if kl_term:
                    given = torch.nn.functional.linear(kl_term.teacher_states[here], weight, bias)
                    change = kl_term.gradient(few, given, wanted)
                losses = _to_gradient(few, wanted)
                if weights is not None:
                    losses *= weights[here]
                    few *= weights[here, None]
                if change is not None:
                    few += change
                total += losses.sum()
            if gradient is not None:
                gradient[part] = logits @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None, None, None, None


def _to_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Overwrite logits (n, vocabulary) by softmax - one-hot, and return their cross entropies (n,).

    Computed in float32. One is subtracted from the target's entry before rounding.
    """
    wide = logits.float()
    wide -= wide.amax(dim=1, keepdim=True)
    picked = wide.gather(1, targets)
    total = wide.exp_().sum(dim=1, keepdim=True)
    torch.div(wide, total, out=logits)
    logits.scatter_(1, targets, (picked.exp() / total - 1).to(logits.dtype))
    return (total.log() - picked)[:, 0]


def response_loss(
    base: Base, conversations: Sequence[Conversation], kl_term: KlTerm | None = None
) -> tuple[Tensor, int]:
    """Sum of -log p(token), times its weight, over the response tokens of a batch, and their number.

    Paper: the inner terms of E[-log p(y given c, x)] (FedSDR, both stages).

    Args:
        base: The model, with the desired adapters active.
        conversations: Conversations of one forward pass.
        kl_term: Added to the gradient, but not to the sum.

    Returns:
        A float32 scalar with gradient for the trained adapters, and the number of tokens.
    """
    states, targets = response_states(base, conversations)
    given = [weight for conversation in conversations for weight in conversation.weights]
    weights = torch.tensor(given, device=base.device) if given else None
    head = base.model.get_output_embeddings()
    total: Tensor = _HeadLoss.apply(states, head.weight, head.bias, targets, weights, kl_term)
    return total, len(targets)


def response_states(base: Base, conversations: Sequence[Conversation]) -> tuple[Tensor, Tensor]:
    """Hidden states that predict the response tokens (num_response_tokens, d), and these tokens."""
    batch = collate(conversations, flat=base.keeps_apart)
    positions, targets = (torch.from_numpy(part).to(base.device) for part in (batch.positions, batch.targets))
    return last_states(base, batch).flatten(0, 1)[positions], targets


def token_losses(base: Base, conversations: Sequence[Conversation], batch_size: int) -> list[list[float]]:
    """-log p of each response token of each conversation, in nats.

    Call it inside `LoraModel.inference`.
    """
    head = base.model.get_output_embeddings()

    def of_batch(batch: list[Conversation]) -> list[list[float]]:
        pairs = zip(*(part.split(FEW) for part in response_states(base, batch)), strict=True)
        losses = iter(
            loss
            for states, targets in pairs
            for loss in _to_gradient(head(states), targets[:, None]).tolist()
        )
        return [[next(losses) for _ in range(one.num_response_tokens)] for one in batch]

    return in_batches(conversations, [len(one.ids) for one in conversations], batch_size, of_batch)


def mean_losses(base: Base, conversations: Sequence[Conversation], batch_size: int) -> list[float]:
    """Mean -log p of each conversation's response tokens, in nats; called inside `LoraModel.inference`."""
    return [sum(losses) / len(losses) for losses in token_losses(base, conversations, batch_size)]


def last_states(base: Base, batch: Batch) -> Tensor:
    """Last hidden states (rows, width, d), the input of the output head."""
    options = in_one_row(batch.lengths, base.device) if batch.lengths else {}
    ids = torch.from_numpy(batch.ids).to(base.device)
    states: Tensor = base.model.get_decoder()(input_ids=ids, use_cache=False, **options).last_hidden_state
    return states


def mean_states(base: Base, texts: Sequence[Conversation], batch_size: int) -> NDArray[np.float32]:
    """Mean over each response's tokens of the states that predict them (num_texts, d).

    Call it inside `LoraModel.inference`.
    """

    def of_batch(batch: list[Conversation]) -> list[NDArray[np.float32]]:
        states = response_states(base, batch)[0].float().cpu().numpy()
        ends = np.cumsum([text.num_response_tokens for text in batch])
        return [part.mean(axis=0) for part in np.split(states, ends[:-1])]

    return np.stack(in_batches(texts, [len(text.ids) for text in texts], batch_size, of_batch))


def held_out_loss(base: Base, conversations: Sequence[Conversation], batch_size: int) -> tuple[float, int]:
    """Mean cross entropy per response token over all conversations, and the number of tokens.

    Call it inside `LoraModel.inference`.
    """
    total, count = 0.0, 0
    for rows in by_length([len(conversation.ids) for conversation in conversations], batch_size):
        loss, num_tokens = response_loss(base, [conversations[row] for row in rows])
        total += loss.item()
        count += num_tokens
    return total / count, count
