"""Invariant 4: in each stage exactly the adapters in `train` change; loading never makes another trainable."""

from collections.abc import Callable
from itertools import combinations

import pytest
import torch

from fedsdr.client.update import local_update
from fedsdr.config import Settings
from fedsdr.data.conversation import encode
from fedsdr.federation.client_context import data_of
from fedsdr.methods import METHODS
from fedsdr.model.adapters import ADAPTERS, LoraModel
from fedsdr.model.base import load_base
from fedsdr.rows import Method

STAGES = [
    pytest.param(stage, id=f"{name}-{number}")
    for name, method in METHODS.items()
    for number, stage in enumerate((*method.before_rounds, *method.stages), start=1)
]


def loaded(settings: Settings) -> LoraModel:
    """A base with two adapters whose every factor is away from zero."""
    base = load_base(settings.model)
    model = LoraModel(base, settings.lora)
    generator = torch.Generator().manual_seed(0)
    for name in ADAPTERS:
        state = model.state(name)
        fresh = {key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in state.items()}
        model.load(name, fresh)
    return model


@pytest.mark.parametrize("stage", STAGES)
def test_exactly_the_trained_adapters_change(tiny_settings: Callable[..., Settings], stage) -> None:  # type: ignore[no-untyped-def]
    settings = tiny_settings(**{"client.weight_decay": 0.1, "data.domains": ["general"]})
    model = loaded(settings)
    (client,) = data_of(settings)[1]
    view = [encode(model.base.tokenizer, example, example.response, 128) for example in client.train]
    tensors = dict(model.base.model.named_parameters()) | dict(model.base.model.named_buffers())
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    local_update(model, Method("", "", (stage,)), {stage.on: view}, settings.client, 1e-3, 0)

    changed = {name for name, tensor in tensors.items() if not torch.equal(tensor, before[name])}
    learners = tuple(f".{letter}.{name}" for name in stage.train for letter in "AB")
    assert changed == {name for name in tensors if name.endswith(learners)}
    assert len(changed) == 2 * len(stage.train) * len(model.layers)


@pytest.mark.parametrize("train", [chosen for size in (0, 1, 2) for chosen in combinations(ADAPTERS, size)])
def test_nothing_else_becomes_trainable(tiny_settings: Callable[..., Settings], train) -> None:  # type: ignore[no-untyped-def]
    model = loaded(tiny_settings())

    def trainable() -> set[str]:
        return {name for name, parameter in model.base.model.named_parameters() if parameter.requires_grad}

    model.set(active=ADAPTERS, train=train)
    expected = {f"{path}.{letter}.{name}" for path in model.layers for letter in "AB" for name in train}
    assert trainable() == expected
    for name in ADAPTERS:
        model.load(name, model.state(name))
        assert trainable() == expected
    with model.inference(ADAPTERS):
        assert not trainable()
