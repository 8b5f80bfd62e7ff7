"""Attention and RMS norm of the base model, with backward passes that keep less and copy less.

transformers' eager attention keeps the softmax of every layer, twice, for the backward pass, and copies
keys and values once for each query head that shares them. Here nothing of the scores is kept: they are
computed again, which costs one product of six. Its RMS norm keeps a float32 copy of its input.

The results are those of transformers up to rounding; `tests/model/test_fused.py` holds both together.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

BLOCK = 128
"""Query positions whose scores are held at a time; keys after the block are not looked at."""


class _CausalAttention(torch.autograd.Function):
    """softmax(q k^T) v of several sequences that lie one after the other, each under its causal mask.

    Shapes: q (groups, heads per group, tokens, d), scaled; k and v (groups, tokens, d), shared by the heads
    of a group.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
        out = torch.empty_like(q)
        for queries, keys in _blocks(lengths):
            weights = _causal_weights(q[:, :, queries], k[:, keys])
            out[:, :, queries] = _grouped(weights, v[:, keys])
        ctx.save_for_backward(q, k, v)
        ctx.lengths = lengths
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        (g,) = outer
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for queries, keys in _blocks(ctx.lengths):
            q_part, g_part = q[:, :, queries], g[:, :, queries]
            weights = _causal_weights(q_part, k[:, keys])
            change = _grouped(g_part, v[:, keys].transpose(1, 2))
            change = torch._softmax_backward_data(change, weights, -1, weights.dtype)
            grad_q[:, :, queries] = _grouped(change, k[:, keys])
            grad_k[:, keys] += change.flatten(1, 2).transpose(1, 2) @ q_part.flatten(1, 2)
            grad_v[:, keys] += weights.flatten(1, 2).transpose(1, 2) @ g_part.flatten(1, 2)
        return grad_q, grad_k, grad_v, None


def _blocks(lengths: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Places of queries, at most BLOCK of them, and of all the keys that the last of them looks at."""
    start = 0
    for length in lengths:
        for first in range(start, start + length, BLOCK):
            end = min(first + BLOCK, start + length)
            yield slice(first, end), slice(start, end)
        start += length


def _grouped(x: Tensor, y: Tensor) -> Tensor:
    """x (..., groups, heads, m, n) times y (..., groups, n, p), which all heads of a group share."""
    return (x.flatten(-3, -2) @ y).unflatten(-2, x.shape[-3:-1])


def _causal_weights(q: Tensor, k: Tensor) -> Tensor:
    """Softmax of the scores (groups, heads, block, keys), of which the block's own are the last."""
    scores = _grouped(q, k.transpose(1, 2))
    num = q.shape[2]
    future = torch.ones(num, num, dtype=torch.bool, device=q.device).triu(1)
    scores[..., -num:].masked_fill_(future, -torch.inf)
    return scores.softmax(dim=-1)


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    lengths: Sequence[int] = (),
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' models call it.

    Args:
        module: The model's attention layer.
        query: (batch, heads, new tokens, d).
        key: (batch, groups, cached and new tokens, d).
        value: As key.
        attention_mask: True where a query may look (batch, 1, new tokens, cached and new tokens).
        scaling: Factor on the scores; None: 1 / sqrt(d).
        lengths: Lengths of the sequences that lie one after the other in a batch of one; then the mask
            is passed over.

    Returns:
        (batch, new tokens, heads, d), and no weights.
    """
    del module
    q = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    q = q.unflatten(1, (key.shape[1], -1))
    if lengths:
        out = _CausalAttention.apply(q[0], key[0], value[0], lengths)[None]
    else:
        scores = _grouped(q, key.transpose(2, 3))
        scores = scores.masked_fill(~attention_mask[:, :, None], torch.finfo(scores.dtype).min)
        out = _grouped(scores.softmax(dim=-1), value)
    return out.flatten(1, 2).transpose(1, 2), None


def _mask(*args: Any, **options: Any) -> Tensor | None:
    """Mask of transformers' SDPA, made also where that would leave it out."""
    return sdpa_mask(*args, **{**options, "allow_is_causal_skip": False})


AttentionInterface.register("grouped", grouped_attention)
AttentionMaskInterface.register("grouped", _mask)


def keeps_apart(model: PreTrainedModel) -> bool:
    """Whether two sequences in one row give what transformers' eager attention gives for the second alone.

    False for models that mix tokens by other means too (convolutions, state spaces), or that add to
    attention what is not known here (sinks, caps on scores).
    """
    first, second = torch.arange(3, 12, device=model.device), torch.arange(40, 57, device=model.device)
    places = torch.cat([torch.arange(len(part), device=model.device) for part in (first, second)])
    decoder = model.get_decoder()
    options = {"position_ids": places[None], "lengths": (len(first), len(second)), "use_cache": False}
    with torch.no_grad():
        row = decoder(torch.cat([first, second])[None], **options).last_hidden_state[0, len(first) :]
        model.set_attn_implementation("eager")
        alone = decoder(second[None], use_cache=False).last_hidden_state[0]
        model.set_attn_implementation("grouped")
    return bool((row - alone).float().norm() < 0.05 * alone.float().norm())


class _RmsNorm(torch.autograd.Function):
    """w x / sqrt(mean(x^2) + eps), computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = inverse.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors
        normed = x.float() * inverse
        g = (outer[0] * weight).float()
        dot = torch.linalg.vecdot(g, normed).div_(x.shape[-1]).unsqueeze(-1)
        return g.sub_(normed.mul_(dot)).mul_(inverse).to(x.dtype), None, None


class RmsNorm(nn.Module):
    """Stands in for a model's own RMS norm; the weight is frozen."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., d)."""
        out: Tensor = _RmsNorm.apply(x, self.weight, self.eps)
        return out


def replace_norms(model: PreTrainedModel) -> int:
    """Put `RmsNorm` where a module computes exactly that; return how many.

    Found by what they compute, not by name: models differ in their norms' small print, such as 1 + w.
    """
    found = {
        path: RmsNorm(module.weight, module.variance_epsilon)
        for path, module in model.named_modules()
        if hasattr(module, "variance_epsilon")
    }
    for path, norm in found.items():
        x = torch.linspace(-2, 3, norm.weight.shape[-1], device=norm.weight.device, dtype=norm.weight.dtype)
        if not torch.allclose(norm(x), model.get_submodule(path)(x), rtol=1e-5, atol=1e-6):
            return 0
    for path, norm in found.items():
        model.set_submodule(path, norm)
    return len(found)
