"""The loss in chunks is transformers' own loss, in value and gradient."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsdr.config import Lora, Settings
from fedsdr.data.batching import collate
from fedsdr.data.conversation import Conversation
from fedsdr.model import loss as loss_module
from fedsdr.model.adapters import ADAPTERS, LoraModel
from fedsdr.model.base import Base, load_base
from fedsdr.model.loss import KlTerm, held_out_loss, response_loss, response_states, token_losses


@pytest.fixture(scope="module")
def model(tiny_settings: Callable[..., Settings]) -> LoraModel:
    """The tiny model with both adapters far from zero."""
    base = load_base(tiny_settings().model)
    model = LoraModel(base, Lora(rank=4))
    generator = torch.Generator().manual_seed(0)
    for name in ADAPTERS:
        state = model.state(name)
        model.load(name, {k: torch.randn(t.shape, generator=generator) / 10 for k, t in state.items()})
    return model


def make(*lengths: tuple[int, int], seed: int = 0) -> list[Conversation]:
    """Random conversations of (prompt, response) tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Conversation(tuple(torch.randint(3, 400, (prompt + response,), generator=generator).tolist()), prompt)
        for prompt, response in lengths
    ]


THREE = make((5, 9), (20, 1), (3, 40))


def reference(base: Base, conversations: list[Conversation], num_tokens: int) -> Tensor:
    """What transformers computes itself from labels, -100 for prompt and padding, over num_tokens."""
    width = max(len(conversation.ids) for conversation in conversations)
    ids = torch.zeros(len(conversations), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, conversation in enumerate(conversations):
        end = len(conversation.ids)
        ids[row, :end] = torch.tensor(conversation.ids)
        labels[row, conversation.prompt_length : end] = ids[row, conversation.prompt_length : end]
        mask[row, :end] = 1
    return base.model(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=num_tokens).loss


def gradients(model: LoraModel) -> list[Tensor]:
    found = [parameter.grad.clone() for parameter in model.parameters(ADAPTERS)]
    for parameter in model.parameters(ADAPTERS):
        parameter.grad = None
    return found


def test_value_and_gradient_are_those_of_transformers_with_accumulation(model):
    """Two forward passes of one step, 40 and 10 response tokens, both over the step's 50 tokens."""
    base = model.base
    model.set(active=ADAPTERS, train=ADAPTERS)
    parts = [THREE[:2], THREE[2:]]
    values = []
    for part in parts:
        value = reference(base, part, 50)
        value.backward()
        values.append(value.item())
    expected = gradients(model)
    for part, value in zip(parts, values, strict=True):
        total, count = response_loss(base, part)
        assert count == sum(conversation.num_response_tokens for conversation in part)
        assert total.item() / 50 == pytest.approx(value, rel=1e-5)
        (total / 50).backward()
    for found, wanted in zip(gradients(model), expected, strict=True):
        assert wanted.any()
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 49, 50, 51, 25])
def test_where_chunks_begin_changes_nothing(model, monkeypatch: pytest.MonkeyPatch, chunk: int):
    """50 response tokens: chunks that divide them, that leave one over, and that hold all."""
    base = model.base
    model.set(active=ADAPTERS, train=ADAPTERS)
    whole, _ = response_loss(base, THREE)
    whole.backward()
    expected = gradients(model)
    monkeypatch.setattr(loss_module, "CHUNK", chunk)
    total, _ = response_loss(base, THREE)
    total.backward()
    assert total.item() == pytest.approx(whole.item(), rel=1e-6)
    for found, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_head_with_bias_gives_the_cross_entropy_of_torch():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 8, generator=generator, requires_grad=True)
    weight, bias = torch.randn(11, 8, generator=generator), torch.randn(11, generator=generator)
    targets = torch.randint(11, (300,), generator=generator)
    total = loss_module._HeadLoss.apply(hidden, weight, bias, targets, None, None)
    (found,) = torch.autograd.grad(total * 3, hidden)
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T + bias, targets, reduction="sum")
    (expected,) = torch.autograd.grad(plain * 3, hidden)
    torch.testing.assert_close(total, plain)
    torch.testing.assert_close(found, expected)


def test_the_base_gets_no_gradient(model):
    base = model.base
    model.set(active=ADAPTERS, train=("shared",))
    total, _ = response_loss(base, THREE)
    total.backward()
    learning = {id(parameter) for parameter in model.parameters(("shared",))}
    with_gradient = {id(p) for p in base.model.parameters() if p.grad is not None}
    model.set(active=ADAPTERS, train=ADAPTERS)
    for parameter in model.parameters(ADAPTERS):
        parameter.grad = None
    assert with_gradient == learning


def test_prompt_and_neighbours_count_for_nothing(model):
    """Went wrong elsewhere: training on prompt and padding, since labels were the token ids."""
    base = model.base
    model.set(active=ADAPTERS, train=())
    total, count = response_loss(base, THREE)
    assert count == 50
    alone = sum(response_loss(base, [conversation])[0].item() for conversation in THREE)
    assert total.item() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("attention", ["grouped", "packed", "eager", "sdpa"])
def test_padding_changes_nothing(tiny_settings, monkeypatch: pytest.MonkeyPatch, attention: str):
    """Whatever stands in the padding; batches are padded on the right, or at the end of their one row."""
    base = load_base(tiny_settings(**{"model.attention": attention}).model)
    assert base.keeps_apart == (attention in ("grouped", "packed"))
    total, count = response_loss(base, THREE)

    def collate_with_noise(conversations: list[Conversation], flat: bool) -> Any:
        batch = collate(conversations, flat)
        batch.ids[batch.ids == 0] = 7
        assert (batch.ids == 7).sum() > 10
        return batch

    monkeypatch.setattr(loss_module, "collate", collate_with_noise)
    noisy, _ = response_loss(base, THREE)
    assert count == 50
    assert noisy.item() == total.item()


@pytest.mark.parametrize("attention", ["grouped", "packed"])
def test_one_row_has_the_loss_and_gradients_of_padded_rows(tiny_settings, attention: str):
    """The same weights, adapters and conversations of unlike lengths."""
    found = []
    for name in (attention, "sdpa"):
        model = LoraModel(load_base(tiny_settings(**{"model.attention": name}).model), Lora(rank=2))
        generator = torch.Generator().manual_seed(0)
        for adapter in ADAPTERS:
            state = {
                key: torch.randn(v.shape, generator=generator) / 9 for key, v in model.state(adapter).items()
            }
            model.load(adapter, state)
        model.set(ADAPTERS, ADAPTERS)
        total, _ = response_loss(model.base, THREE)
        total.backward()
        found.append((total.detach(), [p.grad for p in model.parameters(ADAPTERS)]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)
    assert all(gradient.any() for gradient in found[0][1])


def test_held_out_loss_is_a_mean_over_tokens_whatever_the_batches(model):
    """40 tokens of one answer weigh 40 times the one of another."""
    base = model.base
    with model.inference(("shared",)):
        single = [held_out_loss(base, [conversation], 1) for conversation in THREE]
        assert [count for _, count in single] == [9, 1, 40]
        expected = sum(loss * count for loss, count in single) / 50
        for batch_size in (1, 2, 3):
            loss, count = held_out_loss(base, THREE, batch_size)
            assert count == 50
            assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("includes_label", [True, False])
def test_a_pull_adds_the_gradient_of_the_divergence_and_nothing_to_the_value(model, includes_label: bool):
    """mu KL(q || p), summed, by torch's own kl_div on whole logits; q is the base's, p the model's."""
    base, mu = model.base, 0.7
    model.set(active=ADAPTERS, train=ADAPTERS)
    plain, _ = response_loss(base, THREE)
    plain.backward()
    without = gradients(model)
    with model.with_only(()), torch.no_grad():
        given, _ = response_states(base, THREE)
    pulled, _ = response_loss(base, THREE, KlTerm(given, mu, includes_label))
    pulled.backward()
    assert pulled.item() == plain.item()
    both = gradients(model)

    states, targets = response_states(base, THREE)
    head = base.model.get_output_embeddings()
    logits, others = head(states), head(given)
    if not includes_label:
        keep = torch.ones_like(logits, dtype=torch.bool).scatter(1, targets[:, None], False)
        logits, others = (part[keep].view(len(targets), -1) for part in (logits, others))
    (mu * F.kl_div(logits.log_softmax(1), others.log_softmax(1), reduction="sum", log_target=True)).backward()
    for found, start, more in zip(both, without, gradients(model), strict=True):
        torch.testing.assert_close(found - start, more, rtol=1e-3, atol=1e-5)
        assert more.abs().max() > 1e-3


def test_weights_of_tokens_multiply_their_losses_and_gradients(model):
    """A token of weight 0 is as if it were prompt; of weight 1/2 it counts half."""
    base = model.base
    model.set(active=ADAPTERS, train=ADAPTERS)
    (whole,) = make((5, 9))
    start, halved = (1.0,) * 4 + (0.0,) * 5, (0.5,) * 9
    first = replace(whole, ids=whole.ids[:9])
    values = []
    for conversation in (first, replace(whole, weights=start), whole, replace(whole, weights=halved)):
        total, _ = response_loss(base, [conversation])
        total.backward()
        values.append((total.item(), gradients(model)))
    for (found, gradient), (wanted, other), factor in (
        (values[1], values[0], 1.0),
        (values[3], values[2], 0.5),
    ):
        assert found == pytest.approx(factor * wanted, rel=1e-5)
        for a, b in zip(gradient, other, strict=True):
            torch.testing.assert_close(a, factor * b, rtol=1e-4, atol=1e-6)


def test_the_losses_of_tokens_are_those_that_the_sum_is_made_of_in_the_order_of_the_tokens(model):
    base = model.base
    with model.inference(ADAPTERS):
        found = token_losses(base, THREE, batch_size=2)
        for conversation, losses in zip(THREE, found, strict=True):
            assert len(losses) == conversation.num_response_tokens
            prefixes = [
                response_loss(
                    base, [replace(conversation, ids=conversation.ids[: conversation.prompt_length + n])]
                )
                for n in range(1, len(losses) + 1)
            ]
            sums = [0.0, *(total.item() for total, _ in prefixes)]
            assert losses == pytest.approx([b - a for a, b in pairwise(sums)], abs=1e-3)
