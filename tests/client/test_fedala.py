"""Adaptive local aggregation: where a client begins its round, and how the weights learn."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from fedsdr.client.fedala import MOST_PASSES, NUM_LOSSES, aggregate_locally
from fedsdr.client.update import local_update
from fedsdr.config import Client, Settings
from fedsdr.data.conversation import Conversation
from fedsdr.methods import METHODS
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base
from fedsdr.model.loss import held_out_loss, response_loss

Loaded = tuple[LoraModel, list[Conversation]]


@pytest.fixture
def loaded(tiny_settings: Callable[..., Settings]) -> Loaded:
    """The client's own last adapter, in the private one's place, fits its data; the broadcast is noise."""
    base = load_base(tiny_settings().model)
    model = LoraModel(base, tiny_settings().lora)
    generator = torch.Generator().manual_seed(0)
    texts = [
        Conversation(tuple(torch.randint(3, 400, (12,), generator=generator).tolist()), 3) for _ in range(4)
    ]
    model.initialise("private", seed=0)
    settings = Client(local_steps=20, batch_size=2)
    local_update(model, METHODS["local-only"], {"raw": texts}, settings, 2e-2, 0)
    noise = {k: torch.randn(v.shape, generator=generator) * 0.1 for k, v in model.state("shared").items()}
    model.load("shared", noise)
    return model, texts


def vector(model: LoraModel, name: Any) -> torch.Tensor:
    return parameters_to_vector(model.parameters((name,))).detach().clone()


def aggregate(loaded: Loaded, settings: Settings, weights: torch.Tensor | None, **more: Any):
    model, texts = loaded
    saved = None if weights is None else weights.numpy()
    found, metrics = aggregate_locally(
        model, texts, saved, settings.fedala, settings.client.batch_size, 0, **more
    )
    return torch.from_numpy(found), metrics


def test_one_batch_moves_the_weights_as_the_paper_says(loaded: Loaded, tiny_settings):
    """W <- clip(W - eta (sent - own) dL/dTheta), at Theta = own + W (sent - own)."""
    model, texts = loaded
    sent, own = vector(model, "shared"), vector(model, "private")
    before = torch.rand(sent.shape, generator=torch.Generator().manual_seed(1))
    settings = tiny_settings(
        **{"method": "fedala", "fedala.share": 1.0, "fedala.rate": 500.0, "client.batch_size": 4}
    )
    after, metrics = aggregate(loaded, settings, before)
    assert torch.allclose(vector(model, "shared"), own + after * (sent - own), atol=1e-6)
    assert torch.equal(vector(model, "private"), own)
    assert metrics["train/weights/num_steps"] == 1

    start = own + before * (sent - own)
    for value, part in zip(
        model.parameters(("shared",)),
        start.split([p.numel() for p in model.parameters(("shared",))]),
        strict=True,
    ):
        value.data.copy_(part.view_as(value))
    model.set(("shared",), ("shared",))
    loss, num = response_loss(model.base, texts)
    (loss / num).backward()
    gradient = torch.cat([value.grad.flatten() for value in model.parameters(("shared",))])
    expected = (before - 500 * (sent - own) * gradient).clamp(0, 1)
    assert torch.allclose(after, expected, atol=1e-4)
    assert metrics["train/weights/loss"] == pytest.approx(loss.item() / num)
    assert ((after - before).abs() > 0.01).any()
    assert ((after == 0) | (after == 1)).any()  # some are clipped


def test_weights_of_one_begin_with_what_was_sent_and_weights_of_zero_with_the_clients_own(
    loaded: Loaded, tiny_settings
):
    """To the last bit: with W at one fedala is fedit."""
    model, _ = loaded
    sent, own = vector(model, "shared"), vector(model, "private")
    settings = tiny_settings(**{"method": "fedala", "fedala.rate": 1e-30})
    state = model.state("shared")
    for weights, begins in ((torch.ones_like(sent), sent), (torch.zeros_like(sent), own), (None, sent)):
        model.load("shared", state)
        after, _ = aggregate(loaded, settings, weights)
        assert torch.equal(vector(model, "shared"), begins)
        assert torch.allclose(after, torch.ones_like(sent) if weights is None else weights, atol=1e-20)


def test_a_client_that_is_sent_noise_begins_nearer_to_its_own_adapter(loaded: Loaded, tiny_settings):
    model, texts = loaded

    def loss() -> float:
        with model.inference(("shared",)):
            return held_out_loss(model.base, texts, 4)[0]

    as_sent = loss()
    # Whole batches: the losses of different ones cannot be compared.
    chosen = {"fedala.rate": 100.0, "fedala.share": 1.0, "client.batch_size": 4}
    after, metrics = aggregate(loaded, tiny_settings(**{"method": "fedala", **chosen}), None)
    assert after.min() == 0 and 0.1 < after.mean() < 0.9
    assert loss() < as_sent - 0.1
    assert metrics["train/weights/last_loss"] < metrics["train/weights/first_loss"]


def test_the_first_learning_goes_on_until_the_loss_settles_and_later_ones_take_one_pass(
    loaded: Loaded, tiny_settings
):
    """Of four conversations a share of 0.6 is three, two batches of two and one."""
    settings = tiny_settings(**{"method": "fedala", "fedala.share": 0.6, "fedala.rate": 1e-3})
    first, metrics = aggregate(loaded, settings, None)
    assert metrics["train/weights/num_steps"] == 2 * (
        NUM_LOSSES + 1
    )  # it hardly moves, so it is settled at once
    assert metrics["train/weights/num_tokens"] == 3 * 9 * (NUM_LOSSES + 1)
    _, metrics = aggregate(loaded, settings, first)
    assert metrics["train/weights/num_steps"] == 2


def test_a_first_learning_that_never_settles_ends(
    loaded: Loaded, tiny_settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fedsdr.client.fedala.SETTLED", -1.0)
    _, metrics = aggregate(loaded, tiny_settings(**{"method": "fedala", "client.batch_size": 4}), None)
    assert metrics["train/weights/num_steps"] == MOST_PASSES


def test_factors_that_do_not_travel_are_left_as_they_are(loaded: Loaded, tiny_settings):
    """With ffa, A is the same at all."""
    model, _ = loaded
    before = model.state("shared")
    weights, _ = aggregate(
        loaded, tiny_settings(**{"method": "fedala", "fedala.rate": 100.0}), None, shared_factors=("B",)
    )
    for key, value in model.state("shared").items():
        assert torch.equal(value, before[key]) == (".lora_A." in key)
    assert len(weights) == sum(value.numel() for key, value in before.items() if ".lora_B." in key)
