"""Two adapters on a frozen layer: the formula, its gradients, and that one never affects the other."""

import math
from collections.abc import Callable

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from fedsdr.config import Lora, Settings
from fedsdr.errors import UserError
from fedsdr.model.adapters import ADAPTERS, LoraLinear, LoraModel
from fedsdr.model.base import Base, load_base
from fedsdr.model.targets import find_targets

LORA = Lora(rank=3, alpha=6.0)
D_IN, D_OUT, SCALE = 6, 5, 2.0


class Toy(nn.Module):
    """Two linear layers and an output head."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(D_IN, D_OUT)
        self.down = nn.Linear(D_OUT, D_IN, bias=False)
        self.head = nn.Linear(D_IN, 9)
        self.requires_grad_(False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, h: Tensor) -> Tensor:
        return self.head(self.down(self.up(h)))


def as_base(toy: Toy) -> Base:
    """A base of which the adapters use the layers and the type alone."""
    dtype, device = toy.up.weight.dtype, toy.up.weight.device
    return Base(toy, None, "", "", dtype, device, keeps_apart=False)


@pytest.fixture
def model() -> LoraModel:
    """Adapters on a toy model, both far from zero."""
    return fill(LoraModel(as_base(Toy()), LORA))


def fill(model: LoraModel) -> LoraModel:
    generator = torch.Generator().manual_seed(0)
    for name in ADAPTERS:
        state = model.state(name)
        model.load(name, {key: torch.randn(t.shape, generator=generator) for key, t in state.items()})
    return model


@pytest.fixture
def base(tiny_settings: Callable[..., Settings]) -> Base:
    return load_base(tiny_settings().model)


@pytest.fixture
def h() -> Tensor:
    """Hidden states (batch 2, sequence 4, d_in)."""
    return torch.randn(2, 4, D_IN, generator=torch.Generator().manual_seed(1))


def by_hand(layer: LoraLinear, h: Tensor, names: tuple[str, ...]) -> Tensor:
    """W0 h + b + (alpha/r) (B_r A_r + B_s A_s) h, one product after the other."""
    out = h @ layer.base.weight.T + layer.base.bias
    for name in names:
        out = out + SCALE * (h @ layer.A[name].T) @ layer.B[name].T
    return out


def test_weights_of_the_adapters_scale_their_products_and_their_gradients(model: LoraModel, h: Tensor):
    """W0 h + b + (alpha/r) (1/4 B_r A_r + 3/2 B_s A_s) h; an adapter without a weight has one."""
    layer = model.layers["up"]
    plain = by_hand(layer, h, ())
    shared, private = (by_hand(layer, h, (name,)) - plain for name in ADAPTERS)
    model.set(ADAPTERS, train=ADAPTERS)
    out = layer(h)
    gradients = torch.autograd.grad(out.sum(), model.layers["up"].B["private"])
    model.set(ADAPTERS, train=ADAPTERS, mix={"shared": 0.25, "private": 1.5})
    mixed = layer(h)
    torch.testing.assert_close(mixed, plain + 0.25 * shared + 1.5 * private)
    torch.testing.assert_close(torch.autograd.grad(mixed.sum(), layer.B["private"])[0], 1.5 * gradients[0])
    model.set(ADAPTERS, train=ADAPTERS, mix={"private": 1.5})
    torch.testing.assert_close(layer(h), plain + shared + 1.5 * private)
    model.set(ADAPTERS, train=ADAPTERS)
    assert torch.equal(layer(h), out)
    with model.inference(ADAPTERS, {"shared": 0.0, "private": 2.0}):
        torch.testing.assert_close(layer(h), plain + 2 * private)


@pytest.mark.parametrize("names", [("shared",), ("private",), ("shared", "private")])
def test_forward_is_the_formula_of_the_paper(model: LoraModel, h: Tensor, names):
    layer = model.layers["up"]
    model.set(active=names, train=())
    out = layer(h)
    assert out.shape == (2, 4, D_OUT)
    assert {layer.A[name].shape for name in ADAPTERS} == {(3, D_IN)}
    assert {layer.B[name].shape for name in ADAPTERS} == {(D_OUT, 3)}
    torch.testing.assert_close(out, by_hand(layer, h, names))


def test_without_active_adapters_the_model_is_the_base_model(model: LoraModel, h: Tensor):
    layer = model.layers["up"]
    assert torch.equal(layer(h), layer.base(h))


@pytest.mark.parametrize("train", [("shared",), ("private",), ("shared", "private")])
def test_gradients_are_those_of_two_adapters_computed_apart(model: LoraModel, h: Tensor, train):
    """Went wrong elsewhere: loading a second adapter made the frozen first one learn, or the second never did."""
    layer = model.layers["up"]
    model.set(active=ADAPTERS, train=train)
    learning = model.parameters(train)
    outer = torch.randn(2, 4, D_OUT, generator=torch.Generator().manual_seed(2))
    (layer(h) * outer).sum().backward()
    factors = [factor[name] for name in train for factor in (layer.A, layer.B)]
    expected = torch.autograd.grad((by_hand(layer, h, ADAPTERS) * outer).sum(), factors)
    for factor, gradient in zip(factors, expected, strict=True):
        torch.testing.assert_close(factor.grad, gradient)
    with_gradient = {id(p) for p in layer.parameters() if p.grad is not None}
    assert with_gradient == {id(factor) for factor in factors}
    assert len(learning) == 2 * 2 * len(train)  # A and B of two layers


def test_masters_stay_float32_where_the_model_computes_in_bfloat16(h: Tensor):
    model = fill(LoraModel(as_base(Toy().bfloat16()), LORA))
    model.set(active=ADAPTERS, train=("shared",))
    out = model.layers["up"](h.bfloat16())
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert {p.dtype for p in model.parameters(ADAPTERS)} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters(("shared",)) if p.grad is not None} == {torch.float32}


def test_a_zero_adapter_that_does_not_learn_is_left_out_of_the_products(model: LoraModel, h: Tensor):
    model.initialise("private", seed=0)  # B = 0
    layer = model.layers["up"]
    model.set(active=("shared",), train=("shared",))
    alone = layer(h)
    model.set(active=ADAPTERS, train=("shared",))
    assert layer.active == ("shared",)
    assert torch.equal(layer(h), alone)
    model.set(active=ADAPTERS, train=("private",))  # one that learns must be there
    assert layer.active == ADAPTERS
    layer(h).sum().backward()
    assert layer.B["private"].grad.any()


def test_one_layer_apart_from_zero_keeps_the_whole_adapter(model: LoraModel):
    model.initialise("private", seed=0)
    model.layers["down"].B["private"].data[0, 0] = 1e-30
    assert not model.is_zero("private")


def test_a_fresh_adapter_is_drawn_as_peft_draws_it_and_adds_nothing():
    """Kaiming's uniform rule with a = sqrt(5): bound sqrt(6 / ((1 + 5) d_in)) = 1 / sqrt(d_in)."""
    model = Toy()
    model.up = nn.Linear(1024, 64).requires_grad_(False)
    model = LoraModel(as_base(model), Lora(rank=32, targets=("up",)))
    model.initialise("shared", seed=3)
    a = model.layers["up"].A["shared"].detach()
    bound = 1 / math.sqrt(1024)
    assert a.abs().max() <= bound
    # 32768 draws: the largest is within 1 % of the bound, the variance bound^2 / 3 within 3 %.
    assert a.abs().max() > 0.99 * bound
    assert a.var().item() == pytest.approx(bound**2 / 3, rel=0.03)
    assert abs(a.mean()) < 4 * bound / math.sqrt(3 * a.numel())
    assert model.is_zero("shared")


def test_initial_values_follow_from_the_seed_and_differ_between_layers(model: LoraModel):
    def draw(seed: int) -> dict[str, Tensor]:
        model.initialise("shared", seed)
        return model.state("shared")

    before = torch.random.get_rng_state()
    first, again, other = draw(1), draw(1), draw(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(not torch.equal(first[key], other[key]) for key in first if "lora_A" in key)
    up, down = (first[f"base_model.model.{name}.lora_A.weight"] for name in ("up", "down"))
    assert not torch.equal(up[:, :D_OUT], down)
    assert torch.equal(before, torch.random.get_rng_state())


def test_all_linear_layers_are_those_that_peft_means(base: Base, tiny_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    names = peft.get_peft_model(model, config).state_dict()
    expected = {
        name.removeprefix("base_model.model.").partition(".lora_A")[0] for name in names if ".lora_A." in name
    }
    assert set(find_targets(base.model, "all-linear")) == expected
    assert len(expected) == 2 * 7  # two layers of q, k, v, o, gate, up, down


def test_keys_and_shapes_of_an_adapter_are_those_that_peft_writes(base: Base, tiny_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model_state_dict(peft.get_peft_model(model, config))
    ours = LoraModel(base, Lora(rank=3, targets=("q_proj", "down_proj"))).state("shared")
    assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in theirs.items()}


def test_a_target_that_names_no_linear_layer_is_an_error_that_lists_them(base: Base):
    with pytest.raises(UserError, match=r"qproj matches no linear layer.*down_proj.*q_proj"):
        LoraModel(base, Lora(targets=("v_proj", "qproj")))
    with pytest.raises(UserError, match="lm_head"):  # the head is frozen: the loss applies it by itself
        LoraModel(base, Lora(targets=("lm_head",)))


def test_inference_uses_the_adapters_and_leaves_none_active(model: LoraModel, h: Tensor):
    layer = model.layers["up"]
    with model.inference(ADAPTERS):
        out = layer(h)
        assert not out.requires_grad
        torch.testing.assert_close(out, by_hand(layer, h, ADAPTERS))
    assert torch.equal(layer(h), layer.base(h))
    with pytest.raises(KeyError), model.inference(ADAPTERS):
        raise KeyError
    assert torch.equal(layer(h), layer.base(h))


def test_training_after_inference_uses_the_new_values(model: LoraModel, h: Tensor):
    """The factors that inference cast once must not outlive it."""
    layer = model.layers["up"]
    with model.inference(("shared",)):
        layer(h)
    layer.B["shared"].data.mul_(3)
    model.set(active=("shared",), train=("shared",))
    out = layer(h)
    torch.testing.assert_close(out, by_hand(layer, h, ("shared",)))
    out.sum().backward()
    assert layer.A["shared"].grad is not None


def test_dropout_acts_in_training_and_never_in_inference(h: Tensor):
    model = fill(LoraModel(as_base(Toy()), Lora(rank=3, alpha=6.0, dropout=0.5)))
    layer = model.layers["up"]
    model.training(True)
    model.set(active=("shared",), train=("shared",))
    assert not torch.equal(layer(h), layer(h))
    with model.inference(("shared",)):
        torch.testing.assert_close(layer(h), by_hand(layer, h, ("shared",)))


def test_what_was_taken_out_does_not_change_with_later_training(model: LoraModel):
    taken = model.state("shared")
    kept = {key: tensor.clone() for key, tensor in taken.items()}
    model.load("private", taken)
    for parameter in model.parameters(ADAPTERS):
        parameter.data.add_(1)
    assert all(torch.equal(taken[key], kept[key]) for key in kept)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda state: state.pop(next(iter(state))),
            "1 missing, first base_model.model.up.lora_A.weight",
        ),
        (
            lambda state: state.update({"base_model.model.x": torch.zeros(1)}),
            "1 unknown, first base_model.model.x",
        ),
        (
            lambda state: state.update({k: v[:2] for k, v in state.items() if "lora_A" in k}),
            r"shape \(2, 6\)",
        ),
        (lambda state: state.update({k: torch.zeros(1) for k in list(state)}), r"shape \(1,\)"),
        (lambda state: [state.update({k[17:]: state.pop(k)}) for k in list(state)], "4 missing.*4 unknown"),
    ],
    ids=["missing", "unknown", "rank", "broadcastable", "prefix"],
)
def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_changed(model: LoraModel, spoil, says):
    """Went wrong elsewhere: keys with another prefix only gave a warning, and the base model answered."""
    before = model.state("shared")
    state = {key: tensor + 1 for key, tensor in before.items()}
    spoil(state)
    with pytest.raises(UserError, match=says):
        model.load("shared", state)
    after = model.state("shared")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_merged_model_answers_as_the_model_with_its_adapter(model: LoraModel, h: Tensor):
    model.set(active=("private",), train=())
    expected = model.base.model(h)
    model.merge("private")
    assert type(model.base.model.up) is nn.Linear
    # Float32 sums in another order: how far apart they end depends on the processor.
    torch.testing.assert_close(model.base.model(h), expected, rtol=1e-5, atol=1e-4)


def with_residual(model: LoraModel, rank: int) -> LoraModel:
    """What was added to W0, of that rank."""
    generator = torch.Generator().manual_seed(2)
    state: dict[str, Tensor] = {}
    for key, value in model.state("shared").items():
        shape = (rank, value.shape[1]) if ".lora_A." in key else (value.shape[0], rank)
        state[key] = torch.randn(shape, generator=generator)
    model.load_residual(state)
    return model


@pytest.mark.parametrize("names", [("shared",), ("private", "shared"), ("private",), ()])
def test_what_was_added_to_the_base_is_in_the_sum_wherever_the_shared_adapter_is(
    model: LoraModel, h: Tensor, names
):
    layer = with_residual(model, 4).layers["up"]
    model.set(active=names, train=())
    wanted = by_hand(layer, h, names)
    if "shared" in names:
        a, b = layer.residual
        wanted = wanted + SCALE * (h @ a.T) @ b.T
    torch.testing.assert_close(layer(h), wanted)
    with model.inference(names):
        torch.testing.assert_close(layer(h), wanted)
    model.load_residual({})
    model.set(active=names, train=())
    torch.testing.assert_close(layer(h), by_hand(layer, h, names))


def test_what_was_added_to_the_base_stays_where_the_shared_adapter_is_left_out_as_zero(
    model: LoraModel, h: Tensor
):
    model.initialise("shared", seed=0)  # B = 0, as flora's at the end of a round
    layer = with_residual(model, 4).layers["up"]
    model.set(active=("shared",), train=())
    a, b = layer.residual
    torch.testing.assert_close(layer(h), by_hand(layer, h, ()) + SCALE * (h @ a.T) @ b.T)


def test_what_was_added_to_the_base_learns_nothing_and_gives_the_others_their_gradients(
    model: LoraModel, h: Tensor
):
    layer = with_residual(model, 4).layers["up"]
    frozen = [tensor.clone() for tensor in layer.residual]
    model.set(active=("shared",), train=("shared",))
    layer(h).square().sum().backward()
    found = [layer.A["shared"].grad.clone(), layer.B["shared"].grad.clone()]
    layer.A["shared"].grad = layer.B["shared"].grad = None
    (by_hand(layer, h, ("shared",)) + SCALE * (h @ frozen[0].T) @ frozen[1].T).square().sum().backward()
    torch.testing.assert_close(found, [layer.A["shared"].grad, layer.B["shared"].grad], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(*pair) for pair in zip(layer.residual, frozen, strict=True))
    assert not any(tensor.requires_grad for tensor in layer.residual)


def test_dropout_drops_nothing_of_what_was_added_to_the_base(h: Tensor):
    """It stands for a change of W0, whose input is whole in training too."""
    model = with_residual(fill(LoraModel(as_base(Toy()), LORA.model_copy(update={"dropout": 0.5}))), 4)
    layer = model.layers["up"]
    model.initialise("shared", seed=0)
    model.set(active=("shared",), train=("shared",))  # B = 0: only what was added shows
    model.training(True)
    a, b = layer.residual
    torch.testing.assert_close(layer(h), by_hand(layer, h, ()) + SCALE * (h @ a.T) @ b.T)
