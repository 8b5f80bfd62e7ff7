"""Cross entropy of response tokens, without ever holding the logits of a whole batch.

The output head is applied at response positions only, in chunks, and each chunk's gradient with
respect to the hidden states is made on the way forward; the head itself is frozen. A full (batch,
sequence, vocabulary) float32 tensor would be hundreds of megabytes, held several times.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedsdr.data.batching import Batch, by_length, collate
from fedsdr.data.conversation import Conversation
from fedsdr.model.attention import in_one_row
from fedsdr.model.base import Base

CHUNK = 256
"""Positions whose logits are held at a time."""
FEW = 32
"""Positions whose logits are held in float32 at a time: as many as the caches of a processor take."""


class _HeadLoss(torch.autograd.Function):
    """Sum of cross entropies of a frozen linear head; the gradient is computed in forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            logits = torch.nn.functional.linear(hidden[part], weight, bias)
            for few, wanted in zip(logits.split(FEW), targets[part].split(FEW), strict=True):
                total += _to_gradient(few, wanted[:, None])
            if gradient is not None:
                gradient[part] = logits @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None, None


def _to_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Overwrite logits (n, vocabulary) by softmax - one-hot, and return their cross entropy, summed.

    Computed in float32. The target's own entry is subtracted from before it is rounded.
    """
    wide = logits.float()
    wide -= wide.amax(dim=1, keepdim=True)
    picked = wide.gather(1, targets)
    total = wide.exp_().sum(dim=1, keepdim=True)
    torch.div(wide, total, out=logits)
    logits.scatter_(1, targets, (picked.exp() / total - 1).to(logits.dtype))
    return (total.log() - picked).sum()


def response_loss(base: Base, conversations: Sequence[Conversation]) -> tuple[Tensor, int]:
    """Sum of -log p(token) over the response tokens of a batch, and their number.

    Paper: the inner terms of E[-log p(y given c, x)] (FedSDR, both stages).

    Args:
        base: The model, with adapters set as wanted.
        conversations: Those of one forward pass.

    Returns:
        A float32 scalar with gradient for the adapters that learn, and the number of tokens.
    """
    batch = collate(conversations, flat=base.keeps_apart)
    hidden = last_states(base, batch)
    positions = torch.from_numpy(batch.positions).to(base.device)
    head = base.model.get_output_embeddings()
    states = hidden.flatten(0, 1)[positions]
    targets = torch.from_numpy(batch.targets).to(base.device)
    total: Tensor = _HeadLoss.apply(states, head.weight, head.bias, targets)
    return total, len(batch.targets)


def last_states(base: Base, batch: Batch) -> Tensor:
    """Hidden states (rows, width, d) that the output head is applied to."""
    options = in_one_row(batch.lengths, base.device) if batch.lengths else {}
    ids = torch.from_numpy(batch.ids).to(base.device)
    states: Tensor = base.model.get_decoder()(input_ids=ids, use_cache=False, **options).last_hidden_state
    return states


def held_out_loss(base: Base, conversations: Sequence[Conversation], batch_size: int) -> tuple[float, int]:
    """Mean cross entropy per response token over all conversations, and the number of tokens.

    Called inside `LoraModel.inference`.
    """
    total, count = 0.0, 0
    for rows in by_length([len(conversation.ids) for conversation in conversations], batch_size):
        loss, num_tokens = response_loss(base, [conversations[row] for row in rows])
        total += loss.item()
        count += num_tokens
    return total / count, count
