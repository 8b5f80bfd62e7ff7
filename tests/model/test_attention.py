"""Fast passes agree with plain ones: values, gradients, and what of the model they do not fit."""

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fedsdr.config import Lora
from fedsdr.errors import UnfitAttention, UserError
from fedsdr.model import attention
from fedsdr.model.adapters import ADAPTERS, LoraLinear

HEADS, GROUPS, D = 6, 2, 8


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Each sequence for itself, keys and values copied for each head: (heads, tokens, d)."""
    k, v = (x.repeat_interleave(HEADS // GROUPS, dim=0) for x in (k, v))
    parts = []
    for q_i, k_i, v_i in zip(*(x.split(lengths, dim=1) for x in (q, k, v)), strict=True):
        scores = q_i @ k_i.transpose(1, 2) / D**0.5
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        parts.append(scores.masked_fill(future, -torch.inf).softmax(dim=-1) @ v_i)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("lengths", [[1], [5], [3, 1, 9], [128], [129, 2], [40, 300]], ids=str)
@pytest.mark.parametrize("name", ["grouped", "packed"])
def test_attention_over_sequences_in_one_row_is_that_of_each_alone(lengths: list[int], name: str):
    """Lengths below, at and above a block of queries; gradients of q, k and v too."""
    tokens = sum(lengths)
    q, k, v = (draw(n, tokens, D, seed=n).requires_grad_() for n in (HEADS, GROUPS, GROUPS))
    v = draw(GROUPS, tokens, D, seed=9).requires_grad_()
    g = draw(1, tokens, HEADS, D, seed=3)
    layer = nn.Identity()
    layer.num_key_value_groups, layer.is_causal = HEADS // GROUPS, True
    found, weights = getattr(attention, f"{name}_attention")(
        layer, q[None], k[None], v[None], torch.empty(0), lengths=tuple(lengths)
    )
    assert weights is None
    expected = plain_attention(q, k, v, lengths).transpose(0, 1)[None]
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(out, (q, k, v), g) for out in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_attention_with_a_mask_and_cached_keys_is_the_formula():
    """Two new tokens over five cached ones, of which the first is padding."""
    q, k, v = draw(1, HEADS, 2, D), draw(1, GROUPS, 7, D, seed=1), draw(1, GROUPS, 7, D, seed=2)
    mask = torch.tensor([[False] + [True] * 5 + [False], [False] + [True] * 6])[None, None]
    added = attention.additive(mask, q.dtype)
    found, _ = attention.grouped_attention(nn.Identity(), q, k, v, added, scaling=0.3)
    k, v = (x.repeat_interleave(HEADS // GROUPS, dim=1) for x in (k, v))
    scores = (q @ k.transpose(2, 3) * 0.3).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(found, (scores.softmax(dim=-1) @ v).transpose(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_is_that_of_llama(dtype: torch.dtype):
    theirs = LlamaRMSNorm(16, eps=1e-5).to(dtype).requires_grad_(False)
    theirs.weight.copy_(draw(16, seed=1))
    ours = attention.RmsNorm(theirs.weight, 1e-5)
    x, g = (draw(3, 5, 16, seed=seed).to(dtype) for seed in (2, 3))
    x.requires_grad_()
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(ours(x), theirs(x), **tolerance)
    torch.testing.assert_close(
        torch.autograd.grad(ours(x), x, g), torch.autograd.grad(theirs(x), x, g), **tolerance
    )


def test_norms_are_replaced_only_where_they_compute_the_same():
    class Model(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norm = norm

    class OnePlus(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states) + hidden_states

    for norm, expected in ((LlamaRMSNorm(8), 1), (OnePlus(8), 0), (GemmaRMSNorm(8), 0)):
        model = Model(norm)
        assert attention.replace_norms(model) == expected
        assert isinstance(model.norm, attention.RmsNorm) == bool(expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("active", [("shared",), ADAPTERS], ids=len)
def test_the_fast_adapter_layer_is_the_plain_one(bias: bool, active: tuple[str, ...]):
    """The plain one serves quantised bases and dropout; here its sum is written out."""
    layer = LoraLinear(nn.Linear(12, 7, bias=bias), Lora(rank=3)).double()
    layer.requires_grad_(False)
    for number, name in enumerate(ADAPTERS):
        layer.A[name].copy_(draw(3, 12, seed=number)).requires_grad_()
        layer.B[name].copy_(draw(7, 3, seed=9 + number)).requires_grad_()
    layer.active = active
    h, g = draw(2, 5, 12, seed=4).requires_grad_(), draw(2, 5, 7, seed=5)
    found = layer(h)
    expected = layer.base(h) + sum(layer.scale * h @ layer.A[name].T @ layer.B[name].T for name in active)
    torch.testing.assert_close(found, expected)
    learning = [h, *(layer.A[name] for name in active), *(layer.B[name] for name in active)]
    for ours, theirs in zip(
        *(torch.autograd.grad(out, learning, g) for out in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def small_llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM._from_config(config, attn_implementation="grouped").eval()


def test_a_model_that_mixes_tokens_by_other_means_is_told_apart():
    model = small_llama()
    assert attention.keeps_apart(model)
    assert model.config._attn_implementation == "grouped"

    class Leak(nn.Module):
        """A convolution over two tokens, as in hybrid models."""

        def forward(self, x: Tensor) -> Tensor:
            return x + x.roll(1, dims=1)

    model.model.layers[0].mlp.act_fn = Leak()
    assert not attention.keeps_apart(model)


@pytest.mark.parametrize("name", ["grouped", "packed"])
def test_a_conversation_longer_than_a_sliding_window_is_refused(name: str):
    """Two of five tokens in one row are no conversation of ten."""
    q = k = draw(1, HEADS, 10, D)
    unused = torch.empty(0)
    getattr(attention, f"{name}_attention")(nn.Identity(), q, k, k, unused, sliding_window=5, lengths=(5, 5))
    with pytest.raises(UserError, match=r"6 tokens.*window of 5.*model.attention = 'eager'"):
        getattr(attention, f"{name}_attention")(
            nn.Identity(), q, k, k, unused, sliding_window=5, lengths=(4, 6)
        )


@pytest.mark.parametrize("extra", [{"softcap": 50.0}, {"s_aux": torch.zeros(HEADS)}], ids=str)
def test_caps_and_sinks_are_refused_and_not_passed_over(extra):
    q, k = draw(1, HEADS, 4, D), draw(1, GROUPS, 4, D)
    with pytest.raises(UnfitAttention, match="neither caps on scores nor sinks"):
        attention.grouped_attention(nn.Identity(), q, k, k, torch.empty(0), lengths=(4,), **extra)
