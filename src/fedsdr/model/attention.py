"""Attention and RMS norm of the base model, with backward passes that save and copy less.

transformers' eager attention keeps the softmax of every layer, twice, for the backward pass, and copies keys
and values once for each query head that shares them. Here no scores are saved: recomputing them costs one
product in six. transformers' RMS norm keeps a float32 copy of its input.

The results equal those of transformers up to rounding; `tests/model/test_attention.py` compares both.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from fedsdr.errors import UnfitAttention, UserError

BLOCK = 128
"""Query positions whose scores are in memory at a time; keys after the block are skipped."""


class _CausalAttention(torch.autograd.Function):
    """softmax(q k^T) v of several concatenated sequences, each under its causal mask.

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
    """Slices of at most BLOCK queries, and of all keys that the last of them attends to."""
    start = 0
    for length in lengths:
        for first in range(start, start + length, BLOCK):
            end = min(first + BLOCK, start + length)
            yield slice(first, end), slice(start, end)
        start += length


def _grouped(x: Tensor, y: Tensor) -> Tensor:
    """Multiply x (..., groups, heads, m, n) by y (..., groups, n, p), shared by all heads of a group."""
    return (x.flatten(-3, -2) @ y).unflatten(-2, x.shape[-3:-1])


def _causal_weights(q: Tensor, k: Tensor) -> Tensor:
    """Softmax of the scores (groups, heads, block, keys); the last keys are the block's own."""
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
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    lengths: Sequence[int] = (),
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention with the interface that transformers' models call.

    Args:
        module: The model's attention layer.
        query: (batch, heads, new tokens, d).
        key: (batch, groups, cached and new tokens, d).
        value: Shape as key.
        attention_mask: Added to the scores (batch, 1, new tokens, cached and new tokens).
        scaling: Factor on the scores; None: 1 / sqrt(d).
        sliding_window: Attention span, in layers that have a limit.
        softcap: Cap on scores, used by some models.
        s_aux: Attention sinks, used by some models.
        lengths: Lengths of the sequences concatenated in a batch of one; the mask is then ignored.

    Returns:
        (batch, new tokens, heads, d), and None for the weights.

    Raises:
        UserError: A sequence is longer than the sliding window, or the model uses caps or sinks, which are
            not supported.
    """
    del module
    if softcap is not None or s_aux is not None:
        raise UnfitAttention("model.attention = 'grouped' supports neither caps on scores nor sinks")
    _require_short(max(lengths, default=key.shape[2]), sliding_window)
    q = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    q = q.unflatten(1, (key.shape[1], -1))
    if lengths:
        out = _CausalAttention.apply(q[0], key[0], value[0], lengths)[None]
    else:
        scores = _grouped(q, key.transpose(2, 3)) + attention_mask[:, :, None]
        out = _grouped(scores.softmax(dim=-1), value)
    return out.flatten(1, 2).transpose(1, 2), None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sliding_window: int | None = None,
    lengths: Sequence[int] = (),
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute torch's fused attention on each sequence of one row; otherwise transformers' own "sdpa".

    Without a mask the fused kernels skip the future, and memory is not quadratic in the length of the row.

    Args, returns and raises: as `grouped_attention`.
    """
    if not lengths:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return out, None
    _require_short(max(lengths), sliding_window)
    parts = zip(*(x.split(list(lengths), dim=2) for x in (query, key, value)), strict=True)
    return torch.cat(
        [sdpa_attention_forward(module, *part, None, **options)[0] for part in parts], dim=1
    ), None


def _require_short(longest: int, sliding_window: int | None) -> None:
    if sliding_window is not None and longest > sliding_window:
        raise UserError(
            f"a conversation of {longest} tokens is longer than the model's sliding window of"
            f" {sliding_window}, which model.attention = 'grouped' and 'packed' do not support; set"
            " model.attention = 'eager' or 'sdpa'"
        )


AttentionInterface.register("grouped", grouped_attention)
AttentionMaskInterface.register("grouped", eager_mask)
AttentionInterface.register("packed", packed_attention)
AttentionMaskInterface.register("packed", eager_mask)


def in_one_row(lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Further arguments of a decoder for token ids (1, tokens) when sequences share the row."""
    places = torch.cat([torch.arange(length, device=device) for length in lengths])
    # transformers uses a four-dimensional mask unchanged; otherwise it would build one of (tokens, tokens).
    unused = torch.empty(1, 1, 0, 0, device=device)
    return {"position_ids": places[None], "attention_mask": unused, "lengths": tuple(lengths)}


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive mask for scores: 0 where `visible`, otherwise the lowest value of the dtype."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)


def keeps_apart(model: PreTrainedModel) -> bool:
    """Whether two sequences in one row give the results of transformers' eager attention on the second alone.

    False for models that also mix tokens by other means (convolutions, state spaces), that modify attention
    in unsupported ways (sinks, caps on scores), or whose layers call it differently (Bloom's and StableLM's
    read the mask, DeepSeek's values are narrower than its keys).
    """
    own = model.config._attn_implementation
    first, second = torch.arange(3, 12, device=model.device), torch.arange(40, 57, device=model.device)
    decoder = model.get_decoder()
    options = in_one_row((len(first), len(second)), model.device)
    with torch.no_grad():
        try:
            row = decoder(torch.cat([first, second])[None], use_cache=False, **options).last_hidden_state
        except Exception:  # of any kind: it comes from the model's own code
            return False
        row = row[0, len(first) :]
        model.set_attn_implementation("eager")
        alone = decoder(second[None], use_cache=False).last_hidden_state[0]
        model.set_attn_implementation(own)
    tolerance = 1e-3 if alone.dtype == torch.float32 else 0.05
    return bool((row - alone).float().norm() < tolerance * alone.float().norm())


def check_window(model: PreTrainedModel, longest: int) -> None:
    """Reject lengths that exceed a sliding window of the model.

    Raises:
        UnfitAttention: A layer's sliding window is shorter than `longest` tokens.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]  # if unspecified, of all layers
    if window and "sliding_attention" in kinds and window < Slots.room_for(longest):
        raise UnfitAttention(
            f"the model's sliding window of {window} tokens is shorter than {longest}, the longest that"
            " model.max_length allows with rewriting prompts, and model.attention = 'grouped' and"
            " 'packed' do not support windows ('eager' and 'sdpa' do)"
        )


class Slots:
    """The rows of a batch of answers and their lengths; shared by the caches of all layers."""

    STEP = 16

    def __init__(self, num: int, device: torch.device) -> None:
        """Create empty rows."""
        self.used = torch.zeros(num, dtype=torch.long, device=device)
        """Number of used columns in each row (rows,); 0 in a row without a prompt."""
        self.room = self.STEP
        """Number of key columns that are returned to attention."""
        self.reading: tuple[list[int], list[int]] | None = None
        """During prompt processing: the rows of the prompts, and their lengths."""

    @classmethod
    def room_for(cls, used: int) -> int:
        """Number of key columns that are returned when `used` are in use."""
        return -(-used // cls.STEP) * cls.STEP

    def fit(self) -> None:
        """Return as many columns as the next token of the longest row needs."""
        self.room = self.room_for(int(self.used.max()) + 1)


class RowCache(DynamicLayer):
    """Keys and values of one layer: prompts arrive in one row, then one token per row at a time.

    All rows begin at the first column, whatever their lengths: the result of a row is bit-identical next to
    any other rows, as far as the matrix products allow (`generation.rows_are_independent`). Keys and values
    are returned with the unused columns, which the mask must hide. (Without these they would not be
    contiguous, and each product would copy them.)
    """

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store keys and values: of prompts (1, groups, tokens, d), later of new tokens (rows, groups, 1, d).

        Returns:
            The keys and values visible to the new tokens: the prompts' own, later all (rows, groups, room,
            d).
        """
        slots = self.slots
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shape = (len(slots.used), key_states.shape[1], slots.room, key_states.shape[3])
            self.keys, self.values = key_states.new_zeros(shape), value_states.new_zeros(shape)
        self.keys, self.values = self._fitted(self.keys), self._fitted(self.values)
        if slots.reading:
            taken, lengths = slots.reading
            for new, old in ((key_states, self.keys), (value_states, self.values)):
                for row, part in zip(taken, new[0].split(lengths, dim=1), strict=True):
                    old[row, :, : part.shape[1]] = part
            return key_states, value_states
        rows = torch.arange(len(slots.used), device=slots.used.device)
        self.keys[rows, :, slots.used] = key_states[:, :, 0]
        self.values[rows, :, slots.used] = value_states[:, :, 0]
        return self.keys, self.values

    def _fitted(self, x: Tensor) -> Tensor:
        missing = self.slots.room - x.shape[2]
        return pad(x, (0, 0, 0, missing)).contiguous() if missing else x

    def get_seq_length(self) -> int:
        """Columns in use."""
        return int(self.slots.used.max()) if self.is_initialized else 0


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
    """Replacement for a model's own RMS norm; the weight is frozen."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., d)."""
        out: Tensor = _RmsNorm.apply(x, self.weight, self.eps)
        return out


def replace_norms(model: PreTrainedModel) -> int:
    """Replace modules that compute exactly an RMS norm by `RmsNorm`; return the number of replacements.

    They are found by their results, not by name: norms of models differ in details, such as 1 + w.
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
