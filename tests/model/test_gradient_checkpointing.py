"""Layers computed again in the backward pass give the same gradients; generation is not disturbed."""

from collections.abc import Callable

import pytest
import torch

from fedsdr.config import Lora, Settings
from fedsdr.data.conversation import Conversation
from fedsdr.model.adapters import ADAPTERS, LoraModel
from fedsdr.model.base import load_base
from fedsdr.model.generation import Sampling, generate
from fedsdr.model.loss import response_loss

CONVERSATIONS = [Conversation(tuple(range(5, 40)), 10), Conversation(tuple(range(50, 70)), 3)]


@pytest.mark.parametrize("attention", ["grouped", "packed", "eager"])
def test_gradients_and_answers_are_the_same_and_layers_run_twice(
    tiny_settings: Callable[..., Settings], attention: str
):
    found = {}
    for mode in ("off", "on"):
        base = load_base(
            tiny_settings(**{"model.gradient_checkpointing": mode, "model.attention": attention}).model
        )
        model = LoraModel(base, Lora(rank=2))
        for number, name in enumerate(ADAPTERS):
            model.initialise(name, number)
        calls: list[int] = []
        base.model.model.layers[1].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model.set(ADAPTERS, ADAPTERS)
        model.training(True)
        loss, _ = response_loss(base, CONVERSATIONS)
        loss.backward()
        assert len(calls) == {"off": 1, "on": 2}[mode]
        with model.inference(("shared",)):
            answers = generate(base, [list(c.ids) for c in CONVERSATIONS], Sampling(6))
        found[mode] = loss, [p.grad for p in model.parameters(ADAPTERS)], answers
    torch.testing.assert_close(found["on"][:2], found["off"][:2])
    assert any(gradient.any() for gradient in found["on"][1])
    assert found["on"][2] == found["off"][2]
