"""Private adapters of several clients in one forward pass: each client gets its own model, to the last bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsdr.config import Settings
from fedsdr.model.adapters import LoraLinear, LoraModel
from fedsdr.model.base import load_base
from fedsdr.model.generation import Sampling, generate
from fedsdr.model.multi_lora import ranks_are_independent, several

PROMPTS = [[*range(3, 12)], [*range(20, 26)], [*range(5, 45)], [*range(7, 10)]]


@pytest.fixture
def model(tiny_settings: Callable[..., Settings]) -> LoraModel:
    settings = tiny_settings(**{"model.dtype": "bfloat16"})
    model = LoraModel(load_base(settings.model), settings.lora)
    model.load("shared", drawn(model, 1))
    model.load("private", drawn(model, 2))
    return model


def drawn(model: LoraModel, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) for key, shape in model.shapes("private").items()}


@pytest.mark.parametrize("active", [("shared", "private"), ("private",)])
@pytest.mark.parametrize("rank_of_residual", [0, 3])
def test_each_client_gets_the_answers_of_its_own_model(
    model: LoraModel, active: Any, rank_of_residual: int, monkeypatch: pytest.MonkeyPatch
):
    """In few rows, so that prompts take the rows of other clients' finished answers; and in pieces."""
    monkeypatch.setattr("fedsdr.model.generation.PIECE", 20)
    if rank_of_residual:
        residual = {
            key: value[:rank_of_residual] if ".lora_A." in key else value[:, :rank_of_residual]
            for key, value in drawn(model, 3).items()
        }
        model.load_residual(residual)
    zero = {key: torch.zeros_like(value) for key, value in drawn(model, 4).items()}
    private = [drawn(model, 5), zero, drawn(model, 6)]
    sampling = Sampling(6)
    alone = []
    for adapter in private:
        model.load("private", adapter)
        with model.inference(active):
            alone.append(generate(model.base, PROMPTS, sampling))
    model.load("private", drawn(model, 2))
    with several(model, active, private) as route:
        assert ranks_are_independent(model, route, len(private))
        found = generate(
            model.base, PROMPTS * 3, sampling,
            num_rows=5, route=lambda places: route([at // len(PROMPTS) for at in places])
        )  # fmt: skip
    assert found == [answer for answers in alone for answer in answers]
    assert alone[0] != alone[1] != alone[2] != alone[0]
    held = model.state("private")
    assert all(torch.equal(held[key], value) for key, value in drawn(model, 2).items())


def test_a_sum_that_depends_on_the_ranks_of_other_clients_is_noticed(
    model: LoraModel, monkeypatch: pytest.MonkeyPatch
):
    forward = LoraLinear.forward

    def depends_on_the_number(layer: LoraLinear, h: Tensor) -> Tensor:
        assert layer.ready
        return forward(layer, h) + len(layer.ready[0])

    monkeypatch.setattr(LoraLinear, "forward", depends_on_the_number)
    with several(model, ("shared", "private"), [drawn(model, 5), drawn(model, 6)]) as route:
        assert not ranks_are_independent(model, route, 2)
