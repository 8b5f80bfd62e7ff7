"""Token masking: raw responses without the tokens that the base finds unlikely, an alternative to rewriting.

A rewriting keeps what the base itself would say. Excluding the other tokens from the loss keeps
such tokens alone, without generating anything. For a token of probability p under the base:

    hard   weight 1 where 1 / p <= perplexity, else 0
    soft   weight 1 / (1 + max(0, -log p - log perplexity)): never 0, so that facts are still learned

Paper: Wu et al., "Mitigating Forgetting in LLM Fine-Tuning via Low-Perplexity Token Learning" (Selective
Token Masking), NeurIPS 2025, arXiv 2501.14315 (hard, threshold 2.5). The soft form is our own; the one in
the authors' code goes to 0: exp(-((1 / p - 1) / 0.75)^2).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from fedsdr.config import TokenMask
from fedsdr.data.conversation import Conversation
from fedsdr.model.adapters import LoraModel
from fedsdr.model.loss import token_losses


def weigh_tokens(
    model: LoraModel, conversations: Sequence[Conversation], mask: TokenMask, batch_size: int
) -> list[Conversation]:
    """Weight the response tokens by their likelihood under the base without adapters."""
    with model.inference(()):
        losses = token_losses(model.base, conversations, batch_size)
    return [
        replace(conversation, weights=tuple(weight(loss, mask) for loss in some))
        for conversation, some in zip(conversations, losses, strict=True)
    ]


def weight(loss: float, mask: TokenMask) -> float:
    """Weight of a token with the given -log p, in nats."""
    above = max(0.0, loss - math.log(mask.perplexity))
    return 1 / (1 + above) if mask.soft else float(not above)
