"""Agreement of the clients' changes, worked out by hand, and what aggregation leaves of a gain."""

import numpy as np
import pytest
import torch
from tests.built_in import demo_data

from fedsdr.analysis.consistency import Round, gain_survival, update_consistency
from fedsdr.config import Lora
from fedsdr.data.conversation import encode
from fedsdr.messages.wire import Arrays
from fedsdr.model.adapters import PREFIX, LoraModel
from fedsdr.model.base import load_base
from fedsdr.model.loss import held_out_loss, response_loss

KEYS = [f"{PREFIX}layer.lora_{letter}.weight" for letter in "AB"]


def adapter(product: list[list[float]]) -> Arrays:
    """Factors of rank 2 whose product B A is this (2, 2) matrix."""
    return dict(zip(KEYS, (np.array(product, np.float32), np.eye(2, dtype=np.float32)), strict=True))


def overall(updates: dict[str, Arrays], before: Arrays) -> dict[tuple[str, str], dict[str, float]]:
    records = update_consistency(before, updates)
    return {(record["a"], record["b"]): record for record in records if record["layer"] == "all"}


def test_cosine_and_sign_agreement_are_those_of_the_changes_of_the_product():
    before = adapter([[1, 1], [1, 1]])
    changes = {"a": [[1, 2], [0, 2]], "b": [[1, -2], [0, -2]], "c": [[2, 4], [0, 4]]}
    updates = {name: adapter((np.array(change) + 1).tolist()) for name, change in changes.items()}
    found = overall(updates, before)
    assert found["a", "b"]["cosine"] == pytest.approx((1 - 4 - 4) / 9)
    assert found["a", "c"]["cosine"] == pytest.approx(1)
    assert found["a", "b"]["sign_agreement"] == 1 / 3  # the ones; what neither changed does not count
    assert found["a", "c"]["sign_agreement"] == 1
    assert found["mean", ""]["cosine"] == pytest.approx((-7 / 9 + 1 - 7 / 9) / 3)


def test_equal_products_agree_whatever_their_factors_are():
    """A rotation between the factors changes both of them and nothing of the product."""
    turn = np.array([[0, -1], [1, 0]], np.float32)
    plain = adapter([[1, 2], [3, 4]])
    turned = dict(zip(KEYS, (turn @ plain[KEYS[0]], plain[KEYS[1]] @ turn.T), strict=True))
    found = overall({"a": plain, "b": turned}, adapter([[0, 0], [0, 0]]))
    assert found["a", "b"]["cosine"] == pytest.approx(1)


def test_a_client_that_changed_nothing_agrees_with_none():
    """Once two clients without a change agreed in every sign."""
    before = adapter([[1, 0], [0, 1]])
    found = overall({"a": before, "b": adapter([[2, 0], [0, 1]]), "c": adapter([[3, 0], [0, 1]])}, before)
    assert found["a", "b"]["cosine"] is None and found["a", "b"]["sign_agreement"] is None
    assert found["mean", ""]["cosine"] == pytest.approx(1)
    assert found["mean", ""]["sign_agreement"] == 1
    diverged = overall({"a": before, "b": before}, before)
    assert diverged["mean", ""]["cosine"] is None and diverged["mean", ""]["sign_agreement"] is None


def test_what_is_kept_of_a_gain_follows_from_three_losses(tiny_settings):
    """Before, with the own update, and aggregated; here the aggregation is half of the update."""
    base = load_base(tiny_settings().model)
    model = LoraModel(base, Lora(rank=2))
    model.initialise("shared", 0)
    before = {key: value.numpy() for key, value in model.state("shared").items()}
    examples = demo_data()["math"][1][:4]
    texts = [encode(base.tokenizer, example, example.response, 384) for example in examples]
    # One step of gradient descent on these very texts is a gain.
    model.set(("shared",), ("shared",))
    response_loss(base, texts)[0].backward()
    state = dict(zip(before, model.parameters(("shared",)), strict=True))
    step = {key: 1e-3 * p.grad.numpy() for key, p in state.items() if p.grad is not None}
    own = {key: value - step.get(key, 0) for key, value in before.items()}
    aggregated = {key: value - step.get(key, 0) / 2 for key, value in before.items()}
    rounds = [Round(1, before, {"math": own}, aggregated), Round(3, before, {"math": own}, own)]
    record, whole = gain_survival(model, rounds, {"math": texts}, 2)

    def loss(values: Arrays) -> float:
        model.load("shared", {key: torch.from_numpy(value) for key, value in values.items()})
        with model.inference(("shared",)):
            return held_out_loss(base, texts, 2)[0]

    losses = {"before": loss(before), "own": loss(own), "aggregated": loss(aggregated)}
    assert losses["own"] < losses["aggregated"] < losses["before"]
    for name, value in losses.items():
        assert record[name] == pytest.approx(value, rel=1e-5)
    gain = losses["before"] - losses["own"]
    assert record["kept"] == pytest.approx((losses["before"] - losses["aggregated"]) / gain, rel=1e-3)
    assert record["low"] < record["kept"] < record["high"]  # examples do not all keep the same share
    assert whole["low"] == whole["kept"] == whole["high"] == 1  # but where everything is kept they do


def test_aggregations_that_send_one_factor_are_measured_too():
    before = adapter([[1, 0], [0, 1]])
    only_b = {
        name: {KEYS[1]: np.array(b, np.float32)}
        for name, b in (("a", [[2, 0], [0, 1]]), ("b", [[3, 0], [0, 1]]))
    }
    assert overall(only_b, before)["a", "b"]["cosine"] == pytest.approx(1)


def test_a_gain_that_may_be_chance_is_not_divided_by(tiny_settings):
    base = load_base(tiny_settings().model)
    model = LoraModel(base, Lora(rank=2))
    model.initialise("shared", 0)
    before = {key: value.numpy() for key, value in model.state("shared").items()}
    example = demo_data()["math"][1][0]
    texts = [encode(base.tokenizer, example, example.response, 384)] * 2
    (record,) = gain_survival(model, [Round(1, before, {"math": before}, before)], {"math": texts}, 2)
    assert record["own_low"] == record["own_high"] == 0
    assert record["kept"] is None
