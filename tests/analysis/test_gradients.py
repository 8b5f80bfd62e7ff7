"""Cosines of clients' gradients: against autograd over all examples at once, and known cases."""

import pytest
import torch
from tests.built_in import demo_data

from fedsdr.analysis.gradients import NUM_GROUPS, gradient_alignment
from fedsdr.config import Lora
from fedsdr.data.conversation import encode
from fedsdr.errors import UserError
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base
from fedsdr.model.loss import response_loss


@pytest.fixture
def model(tiny_settings):
    base = load_base(tiny_settings().model)
    model = LoraModel(base, Lora(rank=2))
    generator = torch.Generator().manual_seed(0)
    state = model.state("shared")
    model.load("shared", {k: torch.randn(v.shape, generator=generator) * 0.1 for k, v in state.items()})
    return model


def texts(base, domain: str, num: int = 10):
    return [encode(base.tokenizer, e, e.response, 384) for e in demo_data()[domain][0][:num]]


def gradient(model, some) -> torch.Tensor:
    model.set(("shared",), ("shared",))
    parameters = model.parameters(("shared",))
    total = response_loss(model.base, some)[0]
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)])


def test_the_cosine_is_that_of_the_gradients_of_all_examples(model):
    base = model.base
    raw = {"finance": texts(base, "finance"), "math": texts(base, "math")}
    turned = {"finance": texts(base, "math"), "math": texts(base, "math")}
    records = gradient_alignment(model, {"raw": raw, "distilled": turned}, 3, 0)
    found = {(r["measure"], r["view"]): r for r in records if r["a"] != "mean"}
    g, h = (gradient(model, some) for some in raw.values())
    assert found["gradient", "raw"]["value"] == pytest.approx(float(g @ h / (g.norm() * h.norm())), rel=1e-3)
    # Two clients with the same texts pull one way.
    assert found["gradient", "distilled"]["value"] > found["gradient", "raw"]["value"]
    low, high = (found["gradient", "raw"][end] for end in ("low", "high"))
    assert low < found["gradient", "raw"]["value"] < high
    assert all(parameter.grad is None for parameter in model.parameters(("shared",)))


def test_noise_of_the_examples_is_taken_off_the_norms(model):
    """The corrected cosine is nearer to 1 for two clients whose texts are of one kind."""
    base = model.base
    examples = texts(base, "finance", 40)
    views = {"a": examples[:20], "b": examples[20:]}
    records = gradient_alignment(model, {"raw": views, "distilled": views}, 4, 0)
    plain, corrected = (
        next(r["value"] for r in records if r["measure"] == name and r["a"] == "mean")
        for name in ("gradient", "gradient_corrected")
    )
    assert plain < corrected < 1.2


def test_too_few_examples_to_form_groups_are_refused(model):
    base = model.base
    few = {"finance": texts(base, "finance", NUM_GROUPS - 1), "math": texts(base, "math")}
    with pytest.raises(UserError, match=f"finance has {NUM_GROUPS - 1} examples"):
        gradient_alignment(model, {"raw": few, "distilled": few}, 4, 0)
