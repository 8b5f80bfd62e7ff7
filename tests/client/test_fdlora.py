"""The fusion of two adapters: the sum of their factors, and weights that are better than either alone."""

from collections.abc import Callable

import pytest
import torch

from fedsdr.client.fdlora import PENALTY, Fusion, fuse, search_fusion
from fedsdr.client.update import local_update
from fedsdr.config import Client, Lora, Settings
from fedsdr.data.conversation import Conversation
from fedsdr.methods import METHODS
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base
from fedsdr.model.loss import held_out_loss
from fedsdr.rows import Adapter


def test_factors_are_summed_and_so_their_product_has_the_mixed_terms():
    """(2 A_s - A_p) = (2, 4) - (3, 1) and (2 B_s - B_p) = 2 - 5: B A = -3 (-1, 3), by hand."""
    shared = {"A": torch.tensor([[1.0, 2.0]]), "B": torch.tensor([[1.0]])}
    private = {"A": torch.tensor([[3.0, 1.0]]), "B": torch.tensor([[5.0]])}
    fused = fuse(shared, private, 2.0, -1.0)
    assert (fused["B"] @ fused["A"]).tolist() == [[3.0, -9.0]]


def test_the_penalty_is_a_twentieth_of_the_mean_absolute_weight():
    assert Fusion(1.0, -0.5, 2.0, 1).objective == pytest.approx(2 + 0.05 * 0.75)


@pytest.fixture
def loaded(tiny_settings: Callable[..., Settings]) -> tuple[LoraModel, list[Conversation]]:
    """The shared adapter was trained on the first two conversations, the private one on the last two."""
    base = load_base(tiny_settings().model)
    model = LoraModel(base, Lora(rank=2))
    generator = torch.Generator().manual_seed(0)
    texts = [
        Conversation(tuple(torch.randint(3, 400, (12,), generator=generator).tolist()), 3) for _ in range(4)
    ]
    for number, name in enumerate(("shared", "private")):
        model.initialise(name, seed=number)
    settings = Client(local_steps=20, batch_size=2)
    for method, part in (("fedit", texts[:2]), ("local-only", texts[2:])):
        local_update(model, METHODS[method], {"raw": part}, settings, 2e-2, 0)
    return model, texts


def loss_of(model: LoraModel, active: tuple[Adapter, ...], texts: list[Conversation]) -> float:
    with model.inference(active):
        return held_out_loss(model.base, texts, 4)[0]


@pytest.mark.parametrize(
    "examples", [slice(0, 2), slice(2, 4), slice(0, 4)], ids=["shared", "private", "both"]
)
def test_the_fusion_is_never_worse_than_either_adapter_or_the_base(loaded, examples: slice):
    model, texts = loaded
    alone = {active: loss_of(model, active, texts[examples]) for active in ((), ("shared",), ("private",))}
    shared, private = model.state("shared"), model.state("private")
    found = search_fusion(model, texts[examples], 40, 48)
    for active, loss in alone.items():
        assert found.objective <= loss + PENALTY * len(active) / 2 + 1e-6
    # What is left in the private adapter's place is what was found, and the shared one is as it was.
    fused = fuse(shared, private, found.shared, found.private)
    assert all(torch.equal(value, fused[key]) for key, value in model.state("private").items())
    assert all(torch.equal(value, shared[key]) for key, value in model.state("shared").items())
    assert loss_of(model, ("private",), texts[examples]) == pytest.approx(found.loss)


def test_the_search_prefers_the_adapter_that_learnt_the_examples(loaded):
    model, texts = loaded
    state = model.state("private")
    found = search_fusion(model, texts[:2], 40, 48)
    assert abs(found.shared) > abs(found.private)
    model.load("private", state)
    found = search_fusion(model, texts[2:], 40, 48)
    assert abs(found.private) > abs(found.shared)


@pytest.mark.parametrize("num", [5, 40, 100])
def test_the_search_ends_after_about_so_many_trials(loaded, num: int):
    model, texts = loaded
    found = search_fusion(model, texts[:1], num, 48)
    assert num <= found.num_evaluations <= 1.2 * num + 4
