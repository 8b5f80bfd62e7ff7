"""Loss transfer: ratios and their errors computed by hand; the diagonal is the effect of training on own data."""

import numpy as np
import pytest
from tests.built_in import demo_data

from fedsdr.analysis.response_map import response_map
from fedsdr.analysis.transfer import example_losses, loss_transfer, ratio
from fedsdr.config import Client, Lora
from fedsdr.data.conversation import encode
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base
from fedsdr.model.loss import held_out_loss
from fedsdr.stats import with_error


@pytest.fixture
def model(tiny_settings):
    base = load_base(tiny_settings().model)
    return LoraModel(base, Lora(rank=4))


def views(base, part: int, num: int):
    """Raw texts of two domains, and "rewritings" that are the same words backwards."""
    found = {"raw": {}, "distilled": {}}
    for domain in ("finance", "math"):
        examples = demo_data()[domain][part][:num]
        for view, turn in (("raw", 1), ("distilled", -1)):
            found[view][domain] = [
                encode(base.tokenizer, e, " ".join(e.response.split()[::turn]), 384) for e in examples
            ]
    return found


def test_a_ratio_of_sums_has_the_error_of_its_residuals():
    value, error, freedom = ratio(np.array([2.0, 1.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert (value, freedom) == (9 / 6, 2)
    assert np.isnan(ratio(np.array([1.0]), np.array([2.0]))[1])
    residuals = [2 - 1.5, 1 - 3.0, 6 - 4.5]
    assert error == pytest.approx((3 / 2 * sum(r**2 for r in residuals)) ** 0.5 / 6)


def test_with_few_examples_the_interval_of_a_ratio_contains_the_truth_as_often_as_it_says():
    """Changes are 0.5 nats a token plus noise; 95 % of 1,000 are 950 +- 7. With 1.96 errors it were 800."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 40, (1000, 3)).astype(float)
    sums = 0.5 * sizes + rng.normal(0, 5, sizes.shape)
    found = [with_error(*ratio(*pair)) for pair in zip(sums, sizes, strict=True)]
    assert 930 <= sum(one["low"] <= 0.5 <= one["high"] for one in found) <= 980


def test_losses_of_examples_add_up_to_the_held_out_loss(model):
    base = model.base
    texts = views(base, 1, 5)["raw"]["math"]
    with model.inference(()):
        losses = example_losses(base, texts, 2)
        mean, num_tokens = held_out_loss(base, texts, 2)
    assert losses.sum() / num_tokens == pytest.approx(mean, rel=1e-5)


def test_every_pair_has_its_change_and_others_are_means_of_it(model):
    base = model.base
    settings = Client(local_steps=3, batch_size=2, learning_rate=1e-2)
    records = loss_transfer(model, views(base, 0, 6), views(base, 1, 4), settings, 4, 0)
    found = {(r["view"], r["on"], r["trained_on"], r["tested_on"]): r for r in records}
    # Two views and their difference, two kinds of texts; four pairs, two of "others", and their mean.
    assert len(found) == 3 * 2 * 7
    for key in (key[1:] for key in found if key[0] == "difference"):
        change = found["distilled", *key]["value"] - found["raw", *key]["value"]
        assert found["difference", *key]["value"] == pytest.approx(change)
    for view in ("raw", "distilled"):
        own = found[view, "true responses" if view == "raw" else "rewritings", "math", "math"]
        assert own["high"] < 0  # what is trained on gets likelier
        here = {key[2:]: r["value"] for key, r in found.items() if key[:2] == (view, "rewritings")}
        assert here["others", "finance"] == pytest.approx(here["math", "finance"])
        assert here["others", "mean"] == pytest.approx(
            (here["math", "finance"] + here["finance", "math"]) / 2
        )


def test_the_map_has_a_place_for_each_response_and_repeats_for_a_seed(model):
    base = model.base
    some = views(base, 0, 6)
    first, again = (response_map(model, some, 4, 0) for _ in range(2))
    assert first == again
    assert [(r["view"], r["client"]) for r in first] == [
        (view, domain) for view in ("raw", "distilled") for domain in ("finance", "math") for _ in range(6)
    ]
