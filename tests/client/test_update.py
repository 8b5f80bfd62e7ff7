"""The local update: how many steps, at which rate, and that accumulation is a larger batch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice, repeat
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.client.drift import BY_MU, NO_CORRECTION, by_control_variates, by_rehearsal, towards_broadcast
from fedsdr.client.scaffold import ControlVariates
from fedsdr.client.update import Step, count_steps, learning_rate, local_update
from fedsdr.config import Client, Lora, Settings
from fedsdr.data.batching import data_order
from fedsdr.data.conversation import Conversation
from fedsdr.errors import UserError
from fedsdr.messages import wire
from fedsdr.methods import BOTH, DRIFT_CORRECTIONS, METHODS
from fedsdr.model.adapters import ADAPTERS, LoraModel
from fedsdr.model.base import load_base
from fedsdr.model.loss import response_states
from fedsdr.progress import within
from fedsdr.rows import Adapter, LocalOptimizer, Method, Stage, View
from fedsdr.seeds import seed_for

SHARED = (Stage(("shared",), "raw", ("shared",)),)


@pytest.fixture
def model(tiny_settings: Callable[..., Settings]) -> LoraModel:
    base = load_base(tiny_settings().model)
    model = LoraModel(base, Lora(rank=2))
    for number, name in enumerate(ADAPTERS):
        model.initialise(name, seed=number)
    return model


def make(num: int) -> list[Conversation]:
    """Conversations of 3 prompt tokens and 1, 6, 11, ... response tokens."""
    generator = torch.Generator().manual_seed(0)
    return [
        Conversation(tuple(torch.randint(3, 400, (4 + 5 * n,), generator=generator).tolist()), 3)
        for n in range(num)
    ]


class Spy(torch.optim.AdamW):
    """AdamW that keeps the gradients of each step, as clipped, and its rate."""

    gradients: list[list[torch.Tensor]]
    rates: list[float]

    def step(self, closure=None):
        group = self.param_groups[0]
        Spy.gradients.append([p.grad.clone() for p in group["params"]])
        Spy.rates.append(group["lr"])
        return super().step(closure)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> type[Spy]:
    Spy.gradients, Spy.rates = [], []
    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    return Spy


def update(
    model: LoraModel,
    num: int = 4,
    stages=SHARED,
    rate: float = 1e-3,
    seed: int = 0,
    correction=NO_CORRECTION,
    cycles: int = 1,
    **settings,
):
    settings = {"local_steps": 1, "batch_size": 4, "max_grad_norm": 1e9} | settings
    views = {"raw": make(num), "distilled": make(num)}
    client, method = Client(**settings), Method("", "", stages, cycles=cycles)
    with within("test"):
        return local_update(model, method, views, client, rate, seed, correction=correction)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_training_that_diverges_ends_before_it_spoils_the_adapter(model, bad: float):
    """A private adapter of NaN would be kept, and this client's replies refused for ever after."""
    next(iter(model.layers.values())).base.weight.data.fill_(bad)
    with pytest.raises(UserError, match=r"test: shared on raw: training diverged at step 1 .*learning_rate"):
        update(model)
    assert all(value.isfinite().all() for value in model.state("shared").values())


def test_two_passes_of_two_are_one_pass_of_four(model, spy):
    """Responses of 1, 6, 11 and 16 tokens: a mean of the passes' means would weigh the short ones more."""
    once = update(model, batch_size=4)
    model.initialise("shared", seed=0)
    twice = update(model, batch_size=2, accumulation=2)
    assert len(spy.gradients) == 2
    for whole, parts in zip(*spy.gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)
    assert twice["train/shared/loss"] == pytest.approx(once["train/shared/loss"], rel=1e-6)
    assert twice["train/shared/num_tokens"] == once["train/shared/num_tokens"] == 1 + 6 + 11 + 16


def test_the_gradient_of_a_whole_step_is_clipped_to_the_norm(model, spy):
    update(model)
    model.initialise("shared", seed=0)
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in spy.gradients[0]))
    update(model, max_grad_norm=norm / 4, batch_size=2, accumulation=2)
    for clipped, whole in zip(spy.gradients[1], spy.gradients[0], strict=True):
        torch.testing.assert_close(clipped, whole / 4, rtol=1e-4, atol=1e-7)


def test_every_step_has_the_rate_of_the_round(model, spy):
    update(model, local_steps=3, rate=5e-4)
    assert spy.rates == [5e-4] * 3


def test_a_stage_counts_the_examples_of_its_order(model):
    """Three steps of two of five examples: the tokens are those of the first six drawn."""
    metrics = update(model, num=5, local_steps=3, batch_size=2, seed=9)
    order = data_order(5, 2, seed_for(9, "stage", "shared", "raw"))
    drawn = [index for batch in islice(order, 3) for index in batch]
    assert metrics["train/shared/num_tokens"] == sum(1 + 5 * index for index in drawn)
    assert metrics["train/shared/num_steps"] == 3


def test_training_learns_its_examples_and_reports_where_it_began_and_ended(model):
    metrics = update(model, local_steps=30, batch_size=4, rate=2e-2, max_grad_norm=1.0)
    assert metrics["train/shared/last_loss"] < 0.8 * metrics["train/shared/first_loss"]
    assert (
        metrics["train/shared/last_loss"] < metrics["train/shared/loss"] < metrics["train/shared/first_loss"]
    )


def test_the_second_stage_begins_where_the_first_ended(model):
    """Same four examples in each step of both stages: rectifying starts below the untrained loss."""
    metrics = update(model, stages=METHODS["dual-raw"].stages, local_steps=20, rate=2e-2)
    assert set(metrics) == {
        f"train/{adapter}/{name}"
        for adapter in ("private", "shared")
        for name in ("loss", "first_loss", "last_loss", "num_steps", "num_tokens")
    }
    assert metrics["train/shared/first_loss"] < 0.95 * metrics["train/private/first_loss"]


def test_an_update_leaves_no_adapter_active_and_no_random_state_changed(model):
    base = model.base
    state = torch.random.get_rng_state()
    update(model)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(layer.active == () for layer in model.layers.values())
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def of_stages(*shares: float) -> Method:
    """A method with stages of those shares of the steps."""
    views: tuple[View, ...] = ("raw", "distilled", "mixed")
    pairs = [(learner, view) for view in views for learner in ADAPTERS]
    stages = [
        Stage((learner,), view, BOTH, share=share)
        for share, (learner, view) in zip(shares, pairs, strict=False)
    ]
    return Method("", "", tuple(stages))


@given(st.integers(1, 5), st.data())
def test_a_budget_per_round_is_divided_among_the_stages_without_rest(num_stages: int, data):
    local_steps = data.draw(st.integers(num_stages, 100))
    settings = Client(local_steps=local_steps, budget="per_round")
    steps = [
        count_steps(settings, of_stages(*[1.0] * num_stages), number, 10) for number in range(num_stages)
    ]
    assert sum(steps) == local_steps
    assert max(steps) - min(steps) <= 1
    assert steps == sorted(steps)  # the shared adapter, trained last, gets what does not divide


def test_methods_of_one_and_two_stages_take_equal_steps_per_round_and_not_per_stage():
    per_round = Client(local_steps=9, budget="per_round")
    one, two = of_stages(1.0), of_stages(1.0, 1.0)
    assert [count_steps(per_round, one, 0, 10)] == [9]
    assert [count_steps(per_round, two, number, 10) for number in (0, 1)] == [4, 5]
    per_stage = Client(local_steps=9, budget="per_stage")
    assert [count_steps(per_stage, two, number, 10) for number in (0, 1)] == [9, 9]


def test_a_stage_takes_its_share_of_the_steps():
    """A quarter next to a whole: 1 : 4 of ten steps; of five passes over 8 examples in steps of 4, 1.25 passes."""
    method = of_stages(0.25, 1.0)
    per_round = Client(local_steps=10, budget="per_round")
    assert [count_steps(per_round, method, number, 10) for number in (0, 1)] == [2, 8]
    per_stage = Client(local_steps=10, budget="per_stage")
    assert [count_steps(per_stage, method, number, 10) for number in (0, 1)] == [3, 10]
    epochs = Client(local_steps=0, local_epochs=5, batch_size=4)
    assert [count_steps(epochs, method, number, 8) for number in (0, 1)] == [3, 10]


@pytest.mark.parametrize(
    ("num_examples", "epochs", "steps"),
    [(8, 1, 2), (8, 3, 6), (1, 1, 1), (5, 1, 2), (5, 3, 4), (5, 4, 5), (7, 4, 7)],
)
def test_epochs_take_as_many_steps_as_their_passes_fill(num_examples: int, epochs: int, steps: int):
    """Steps of 4. Three passes over 5 are 15 examples, so 4 steps; 6 would be nearly five passes."""
    settings = Client(local_steps=0, local_epochs=epochs, batch_size=2, accumulation=2)
    assert count_steps(settings, of_stages(1.0, 1.0), 0, num_examples) == steps
    seen = [index for batch in islice(data_order(num_examples, 4, 0), steps) for index in batch]
    assert all(seen.count(index) >= epochs for index in range(num_examples))


def test_the_rate_falls_over_the_rounds_as_the_schedule_says():
    """Five rounds, 1e-3 to a tenth: halfway (round 3) both curves are at 0.55, their mean."""

    def rates(schedule: str) -> list[float]:
        settings = Client(learning_rate=1e-3, schedule=schedule, final_rate=0.1)
        return [1e3 * learning_rate(settings, number, 5) for number in range(1, 6)]

    assert rates("constant") == pytest.approx([1] * 5)
    assert rates("linear") == pytest.approx([1, 0.775, 0.55, 0.325, 0.1])
    quarter = 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2  # cos(pi / 4)
    assert rates("cosine") == pytest.approx([1, quarter, 0.55, 1.1 - quarter, 0.1])


def test_a_run_of_one_round_has_the_full_rate():
    for schedule in ("constant", "cosine", "linear"):
        assert learning_rate(Client(learning_rate=1e-3, schedule=schedule), 1, 1) == 1e-3


def test_the_proximal_term_adds_mu_times_the_distance_to_what_the_server_sent(model, spy):
    """FedProx: the gradient of mu / 2 (w - w_t)^2 is mu (w - w_t): nothing in step 1, mu times its change in step 2.

    Step 2 of both runs begins at the same point, since step 1 is the same.
    """
    start = [value.detach().clone() for value in model.parameters(("shared",))]
    update(model, local_steps=2)
    plain = spy.gradients[:]
    model.initialise("shared", seed=0)
    spy.gradients.clear()
    update(model, local_steps=1)
    moved = [value.detach() - old for value, old in zip(model.parameters(("shared",)), start, strict=True)]
    model.initialise("shared", seed=0)
    spy.gradients.clear()
    update(model, local_steps=2, correction=towards_broadcast(model, 0.7))
    for with_term, without in zip(spy.gradients[0], plain[0], strict=True):
        assert torch.equal(with_term, without)
    for with_term, without, change in zip(spy.gradients[1], plain[1], moved, strict=True):
        torch.testing.assert_close(with_term, without + 0.7 * change, rtol=1e-5, atol=1e-8)
    assert any(change.abs().max() > 1e-4 for change in moved)


def test_the_proximal_term_is_for_the_shared_adapter_alone(model, spy):
    """The private adapter is nowhere averaged, so there is nothing for it to stay near."""
    private = (Stage(("private",), "raw", ("shared", "private")),)
    update(model, stages=private, local_steps=3)
    plain = spy.gradients[:]
    model.initialise("private", seed=1)
    spy.gradients.clear()
    update(model, stages=private, local_steps=3, correction=towards_broadcast(model, 0.7))
    for step, same in zip(spy.gradients, plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(step, same, strict=True))


def test_every_stage_is_pulled_to_what_the_server_sent_not_to_the_stage_before(model, spy):
    """Went wrong once. The first gradient of the second stage is mu times what the first stage moved, and its own."""
    both = METHODS["fedsd-then-raw"].stages
    start = [value.detach().clone() for value in model.parameters(("shared",))]
    update(model, stages=both[:1], correction=towards_broadcast(model, 0.7))
    moved = [value.detach() - old for value, old in zip(model.parameters(("shared",)), start, strict=True)]
    model.initialise("shared", seed=0)
    spy.gradients.clear()
    update(model, stages=both, correction=towards_broadcast(model, 0.7))
    pulled = spy.gradients[1]
    model.initialise("shared", seed=0)
    spy.gradients.clear()
    update(model, stages=both)
    for with_term, without, change in zip(pulled, spy.gradients[1], moved, strict=True):
        torch.testing.assert_close(with_term, without + 0.7 * change, rtol=1e-5, atol=1e-8)


def values(model: LoraModel, name: Adapter = "shared") -> list[torch.Tensor]:
    return list(model.state(name).values())


def begun(model: LoraModel) -> list[torch.Tensor]:
    """The shared adapter is reinitialised, with B away from zero, so that A has a gradient too."""
    model.initialise("shared", seed=0)
    for layer in model.layers.values():
        layer.B["shared"].data.fill_(0.01)
    return values(model)


def test_plain_sgd_goes_against_the_gradient_and_remembers_nothing(model, spy):
    """Two steps of w <- w - lr g. AdamW, which the spy watches, records the gradients at the same points."""
    start = begun(model)
    update(model)
    first = spy.gradients[0]
    begun(model)
    update(model, optimizer="sgd", rate=0.5)
    once = values(model)
    for after, before, gradient in zip(once, start, first, strict=True):
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(after, before - 0.5 * gradient, rtol=1e-6, atol=1e-8)
    update(model)
    second = spy.gradients[1]
    begun(model)
    update(model, optimizer="sgd", rate=0.5, local_steps=2)
    for after, before, gradient in zip(values(model), once, second, strict=True):
        torch.testing.assert_close(after, before - 0.5 * gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", get_args(LocalOptimizer))
def test_weight_decay_is_the_same_share_of_the_weights_with_both_optimizers(model, optimizer: str):
    start = begun(model)
    update(model, optimizer=optimizer, rate=0.1)
    plain = values(model)
    begun(model)
    update(model, optimizer=optimizer, rate=0.1, weight_decay=0.5)
    for decayed, without, before in zip(values(model), plain, start, strict=True):
        torch.testing.assert_close(decayed, without - 0.1 * 0.5 * before, rtol=1e-5, atol=1e-7)


def test_a_norm_of_zero_clips_nothing(model, spy):
    for norm in (1e9, 0.0):
        begun(model)
        update(model, max_grad_norm=norm)
    assert all(torch.equal(a, b) for a, b in zip(*spy.gradients, strict=True))


def shift_of(model: LoraModel) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        key: rng.normal(size=value.shape).astype(np.float32) for key, value in model.state("shared").items()
    }


@pytest.mark.parametrize("optimizer", get_args(LocalOptimizer))
def test_control_variates_are_added_to_each_step(model, optimizer: str):
    """y <- y - lr (g + c - c_k). AdamW does not scale c - c_k, which is made of whole steps of AdamW."""
    shift = shift_of(model)
    begun(model)
    update(model, optimizer=optimizer, rate=0.1)
    plain = values(model)
    begun(model)
    update(model, optimizer=optimizer, rate=0.1, correction=by_control_variates(model, shift))
    for after, without, more in zip(values(model), plain, shift.values(), strict=True):
        torch.testing.assert_close(after, without - 0.1 * torch.from_numpy(more), rtol=1e-6, atol=1e-7)


def test_control_variates_are_for_the_shared_adapter_where_it_learns(model):
    """Not for the private one next to it, not in stages of the private one, not for a factor that stays."""
    shift = shift_of(model)
    private = (Stage(("private",), "raw", BOTH),)
    shared = begun(model)
    update(model, stages=private, optimizer="sgd", rate=0.1, correction=by_control_variates(model, shift))
    steered = values(model, "private")
    assert all(torch.equal(a, b) for a, b in zip(values(model), shared, strict=True))
    model.initialise("private", seed=1)
    update(model, stages=private, optimizer="sgd", rate=0.1)
    assert all(torch.equal(a, b) for a, b in zip(values(model, "private"), steered, strict=True))

    model.initialise("private", seed=1)
    update(
        model,
        stages=(Stage(BOTH, "raw", BOTH),),
        optimizer="sgd",
        rate=0.1,
        correction=by_control_variates(model, shift),
    )
    for joint, alone in zip(values(model, "private"), steered, strict=True):
        torch.testing.assert_close(joint, alone, rtol=1e-4, atol=1e-6)  # the examples come in another order
    assert not any(torch.equal(a, b) for a, b in zip(values(model), shared, strict=True))

    begun(model)
    only_b = {key: value for key, value in shift.items() if ".lora_B." in key}
    views, client = {"raw": make(4)}, Client(local_steps=1, optimizer="sgd")
    local_update(
        model,
        Method("", "", SHARED),
        views,
        client,
        0.1,
        0,
        shared_factors=("B",),
        correction=by_control_variates(model, only_b),
    )
    for key, before in zip(shift, shared, strict=True):
        assert torch.equal(model.state("shared")[key], before) == (".lora_A." in key)


def test_after_one_step_the_control_variate_of_a_client_is_its_gradient(model, spy):
    """Option II with K = 1: c_k - c + (x - y) / lr, where y = x - lr (g + c - c_k), is g, whatever c and c_k."""
    begun(model)
    update(model)
    x = wire.pack({key: value.numpy() for key, value in model.state("shared").items()})
    rng = np.random.default_rng(1)
    control_variates = ControlVariates(*(rng.normal(size=x.shape).astype(np.float32) for _ in range(2)))
    keys = {key: tuple(value.shape) for key, value in model.state("shared").items()}
    update(
        model,
        optimizer="sgd",
        rate=0.1,
        correction=by_control_variates(model, wire.unpack(control_variates.shift, keys)),
    )
    y = wire.pack({key: value.numpy() for key, value in model.state("shared").items()})
    model.load("shared", {k: torch.from_numpy(v.copy()) for k, v in wire.unpack(x, keys).items()})
    spy.gradients.clear()
    update(model)
    gradient = wire.pack({key: g.numpy() for key, g in zip(keys, spy.gradients[0], strict=True)})
    new = control_variates.own + control_variates.change(x, y, 1, 0.1)
    np.testing.assert_allclose(new, gradient, atol=3e-6)
    assert np.abs(gradient).max() > 1e-2


SMOOTH, RECTIFY = METHODS["fedsdr"].stages
FREE = {"batch_size": 2, "local_steps": 6, "rate": 1e-2}


def trained(
    model: LoraModel, stages: tuple[Stage, ...], **settings: Any
) -> dict[Adapter, list[torch.Tensor]]:
    """Both adapters after an update from the same beginning, where neither is zero."""
    model.initialise("private", seed=1)
    begun(model)
    for layer in model.layers.values():
        layer.B["private"].data.fill_(-0.02)
    update(model, stages=stages, **{**FREE, **settings})
    return {name: values(model, name) for name in ADAPTERS}


def same(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_a_private_adapter_that_is_always_left_out_gives_fedits_shared_one_to_the_bit(model):
    """At equal steps of the shared adapter, rate and order of data; left out never, it is fedsdr."""
    fedit, fedsdr = trained(model, SHARED), trained(model, (SMOOTH, RECTIFY))
    never, half, always = (trained(model, (SMOOTH, replace(RECTIFY, drop=drop))) for drop in (0.0, 0.5, 1.0))
    assert same(always["shared"], fedit["shared"])
    assert all(same(never[name], fedsdr[name]) for name in ADAPTERS)
    assert same(half["private"], fedsdr["private"])
    assert not same(half["shared"], fedit["shared"]) and not same(half["shared"], fedsdr["shared"])


def test_which_steps_go_without_an_adapter_follows_from_the_seed(model, monkeypatch: pytest.MonkeyPatch):
    """Of 200 steps 120 +- 3 standard deviations have it at a drop of 0.4; the learner is never left out."""
    seen: list[tuple[Adapter, ...]] = []
    monkeypatch.setattr(LoraModel, "set", lambda self, active=(), train=(), *rest: seen.append(tuple(active)))
    monkeypatch.setattr("fedsdr.client.update.train_steps", lambda *rest: repeat(Step(0.0, 1)))

    def drawn(seed: int) -> list[tuple[Adapter, ...]]:
        seen.clear()
        for value in model.parameters(ADAPTERS):
            value.requires_grad_(True)
        with within("test"):
            local_update(
                model,
                Method("", "", (replace(RECTIFY, drop=0.4),)),
                {"raw": make(4)},
                Client(local_steps=200),
                1e-3,
                seed,
            )
        return seen[1:-1]

    first = drawn(0)
    assert set(first) == {("shared",), BOTH}
    assert abs(first.count(BOTH) - 120) <= 3 * math.sqrt(200 * 0.4 * 0.6)
    assert drawn(1) != first
    assert drawn(0) == first


@pytest.mark.parametrize("cycles", [1, 2, 0])
def test_cycles_part_the_steps_of_each_stage_and_lose_none(
    model, monkeypatch: pytest.MonkeyPatch, cycles: int
):
    """Two steps of S and six of R: in two cycles S RRR S RRR; after every step R R S R R S, simultaneously."""
    learners: list[str] = []
    step = torch.optim.AdamW.step
    first = model.parameters(("private",))[0]

    def listening(self: torch.optim.AdamW, closure: Any = None) -> Any:
        learners.append("S" if self.param_groups[0]["params"][0] is first else "R")
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", listening)
    trained(model, (replace(SMOOTH, share=1 / 3), RECTIFY), cycles=cycles)
    assert "".join(learners) == {1: "SSRRRRRR", 2: "SRRRSRRR", 0: "RRSRRRSR"}[cycles]


def test_cycles_go_on_with_the_order_and_the_moments_of_the_data_before(model):
    """A stage of one learner alone is the same in one part and in three."""
    assert same(trained(model, SHARED, cycles=3)["shared"], trained(model, SHARED)["shared"])


def test_a_stage_has_its_part_of_the_rate(model, spy):
    update(model, stages=(replace(SMOOTH, rate=0.25), RECTIFY), rate=1e-3)
    assert spy.rates == [0.25e-3, 1e-3]


def test_a_stage_may_begin_from_the_other_adapter(model):
    """S takes R's values and learns from there; R keeps its own."""
    stage = Stage(("private",), "raw", ("private",), begins_from="shared")
    found = trained(model, (stage,), rate=1e-30)
    assert same(found["private"], found["shared"])
    assert not same(trained(model, (stage,))["private"], found["shared"])


def test_every_correction_with_a_weight_has_its_function():
    weighted = {name: row for name, row in DRIFT_CORRECTIONS.items() if row.weight}
    assert list(BY_MU) == [name for name, row in weighted.items() if not row.rehearses]


def test_l2_adds_mu_times_the_shared_adapter_to_its_gradient(model, spy):
    start = begun(model)
    update(model)
    update_from = begun(model)
    update(model, correction=BY_MU["l2"](model, 0.7))
    for with_term, without, w in zip(spy.gradients[1], spy.gradients[0], start, strict=True):
        torch.testing.assert_close(with_term, without + 0.7 * w, rtol=1e-5, atol=1e-8)
    assert same(start, update_from)


@pytest.mark.parametrize("name", ["kl", "not-true"])
def test_an_anchor_at_the_base_does_nothing_where_the_model_is_the_base(model, spy, name: str):
    """KL is least at zero, so its gradient vanishes in the first step; in the second it does not."""
    model.initialise("shared", seed=0)
    update(model, local_steps=2, rate=1e-2)
    model.initialise("shared", seed=0)
    update(model, local_steps=2, rate=1e-2, correction=BY_MU[name](model, 5.0))
    plain, anchored = spy.gradients[:2], spy.gradients[2:]
    for a, b in zip(plain[0], anchored[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    assert max((a - b).abs().max() for a, b in zip(plain[1], anchored[1], strict=True)) > 1e-4


def rehearsed(num: int) -> list[Conversation]:
    return [replace(text, weights=(0.0,) * text.num_response_tokens) for text in make(num)]


@pytest.mark.parametrize("has_residual", [False, True])
def test_rehearsal_adds_the_gradient_of_mu_times_the_mean_kl_of_the_global_model(model, has_residual: bool):
    """Computed again with whole logits. The private adapter is active, with a weight, but the global model is
    kept: the shared adapter and the residual, towards the base without either."""
    own, generator = rehearsed(3), torch.Generator().manual_seed(1)
    for name in BOTH:
        for value in model.tensors(name).values():
            value.data.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    if has_residual:
        model.load_residual(model.state("private"))

    def log_probabilities() -> torch.Tensor:
        states, _ = response_states(model.base, own)
        return model.base.model.get_output_embeddings()(states).float().log_softmax(dim=1)

    with model.with_only(()), torch.no_grad():
        before = log_probabilities()
    model.set(("shared",), ("shared",))
    kl = (before.exp() * (before - log_probabilities())).sum() / sum(one.num_response_tokens for one in own)
    wanted = torch.autograd.grad(0.7 * kl, model.parameters(("shared",)))

    model.set(BOTH, ("shared",), mix={"shared": 0.5})
    by_rehearsal(own, 0.7, 3, seed=0).rehearse(model)
    assert all((layer.active, layer.mix) == (BOTH, {"shared": 0.5}) for layer in model.layers.values())
    for value, gradient in zip(model.parameters(("shared",)), wanted, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-3, atol=1e-6)
        value.grad = None


def test_rehearsal_begins_with_zero_and_then_holds_the_base_back(model):
    """The gradient of KL is zero at the base; after twenty steps more of the base is left with rehearsal."""

    def learnt(correction, num: int) -> float:
        model.initialise("shared", seed=0)
        update(model, local_steps=num, rate=2e-2, correction=correction)
        with model.inference(("shared",)):
            changed = response_states(model.base, own)[0]
        with model.inference(()):
            return float((changed - response_states(model.base, own)[0]).norm())

    own = rehearsed(4)
    assert learnt(by_rehearsal(own, 5.0, 2, seed=0), 1) == pytest.approx(learnt(NO_CORRECTION, 1), rel=1e-4)
    assert learnt(by_rehearsal(own, 5.0, 2, seed=0), 20) < 0.8 * learnt(NO_CORRECTION, 20)


def test_rehearsal_reads_every_conversation_before_one_again(model):
    correction, seen = by_rehearsal(own := rehearsed(4), 1.0, 2, seed=0), []
    for _ in range(2):
        seen += next(correction.rehearsed)
    assert sorted(map(own.index, seen)) == [0, 1, 2, 3]


def test_an_optimizer_step_rehearses_one_batch_however_many_passes_it_has(model):
    correction, again = (by_rehearsal(rehearsed(40), 1.0, 1, seed=0) for _ in range(2))
    update(model, batch_size=1, accumulation=4, local_steps=2, correction=correction)
    order = [next(again.rehearsed) for _ in range(3)]
    assert next(correction.rehearsed) == order[2]


def test_a_step_of_the_private_adapter_rehearses_nothing(model):
    private = (Stage(("private",), "raw", BOTH),)
    found = trained(model, private)["private"]
    assert same(found, trained(model, private, correction=by_rehearsal(rehearsed(4), 5.0, 2, 0))["private"])


def test_an_anchor_at_the_base_holds_the_predictions_back(model):
    """Twenty steps: the stronger the anchor, the less is learned."""
    losses = []
    for mu in (1e-9, 10.0, 1000.0):
        model.initialise("shared", seed=0)
        metrics = update(model, local_steps=20, rate=2e-2, correction=BY_MU["kl"](model, mu))
        losses.append(metrics["train/shared/last_loss"])
    assert losses[0] < losses[1] < losses[2] <= metrics["train/shared/first_loss"] + 0.01


def test_an_anchor_at_the_base_is_for_the_shared_adapter_alone(model):
    private = (Stage(("private",), "raw", BOTH),)
    found = trained(model, private)["private"]
    assert same(found, trained(model, private, correction=BY_MU["kl"](model, 5.0))["private"])
    assert all(layer.active == () for layer in model.layers.values())


@pytest.mark.parametrize("name", ["kl", "not-true"])
def test_weights_that_are_all_alike_change_nothing_with_an_anchor_either(model, name: str):
    """The loss is a mean by weight, the pull one by token: it must not grow where many tokens are masked."""

    def learnt(weight: float) -> list[torch.Tensor]:
        texts = [replace(text, weights=(weight,) * text.num_response_tokens) for text in make(4)]
        begun(model)
        correction = BY_MU[name](model, 5.0)
        with within("test"):
            local_update(
                model,
                Method("", "", SHARED),
                {"raw": texts},
                Client(local_steps=2),
                1e-2,
                0,
                correction=correction,
            )
        return values(model)

    for half, whole in zip(learnt(0.5), learnt(1.0), strict=True):
        torch.testing.assert_close(half, whole, rtol=1e-3, atol=1e-6)


def test_a_step_whose_tokens_are_all_masked_changes_nothing(model):
    masked = [replace(text, weights=(0.0,) * text.num_response_tokens) for text in make(4)]
    start = begun(model)
    with within("test"):
        local_update(model, Method("", "", SHARED), {"raw": masked}, Client(local_steps=1), 1e-3, 0)
    assert same(values(model), start)
