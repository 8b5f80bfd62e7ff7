"""Weights of the private adapter: from the likeness of prompts, and a score for each prompt with its own."""

from collections.abc import Callable
from statistics import mean

import pytest
import torch

from fedsdr.config import Settings
from fedsdr.data.conversation import encode
from fedsdr.evaluate.feddpa import evaluate_weighted, private_weights
from fedsdr.evaluate.personal import evaluate_personal
from fedsdr.evaluate.tasks import TestSet, evaluate
from fedsdr.federation.client_context import data_of
from fedsdr.methods import METHODS
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base

Client = tuple[Settings, LoraModel, dict[str, TestSet]]


@pytest.fixture
def client(tiny_settings: Callable[..., Settings]) -> Client:
    """A model with two adapters away from zero, and the training examples of two domains."""
    settings = tiny_settings(**{"data.domains": ["finance", "math"], "eval.max_new_tokens": 4})
    base = load_base(settings.model)
    model = LoraModel(base, settings.lora)
    generator = torch.Generator().manual_seed(0)
    for name in ("shared", "private"):
        state = model.state(name)
        model.load(name, {k: torch.randn(v.shape, generator=generator) * 0.1 for k, v in state.items()})
    tests = {
        one.id: TestSet(one.train, [encode(base.tokenizer, e, e.response, 384) for e in one.train], [])
        for one in data_of(settings)[1]
    }
    return settings, model, tests


def test_the_weight_is_the_mean_cosine_of_the_prompts_last_states(client: Client):
    """Recomputed for each prompt alone; h is the last hidden state with the private adapter alone."""
    settings, model, tests = client
    known, asked = tests["finance"].raw[:3], [*tests["finance"].raw[3:5], *tests["math"].raw[:2]]
    found = private_weights(model, known, asked, 0.4, settings.eval.batch_size)
    states = []
    with model.inference(("private",)):
        for conversation in (*known, *asked):
            ids = torch.tensor([conversation.ids[: conversation.prompt_length]])
            states.append(
                model.base.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
            )
    for weight, h in zip(found, states[3:], strict=True):
        similar = [float(h @ other / (h.norm() * other.norm())) for other in states[:3]]
        assert weight == pytest.approx(0.4 * max(0, sum(similar) / 3), abs=1e-5)


def test_a_prompt_of_the_clients_own_kind_has_a_larger_weight(client: Client):
    settings, model, tests = client
    known = tests["finance"].raw[:3]
    own = private_weights(model, known, tests["finance"].raw[3:], 0.5, settings.eval.batch_size)
    other = private_weights(model, known, tests["math"].raw[3:], 0.5, settings.eval.batch_size)
    assert mean(own) > mean(other)
    (same,) = private_weights(model, known[:1], known[:1], 0.5, settings.eval.batch_size)
    assert same == pytest.approx(0.5)


def test_the_response_does_not_enter_the_weight(client: Client):
    """At inference there is none."""
    settings, model, tests = client
    first, second = tests["math"].examples[:2]
    prompts = [encode(model.base.tokenizer, first, text, 384) for text in (first.response, "Who knows?")]
    known = [encode(model.base.tokenizer, second, second.response, 384)]
    weights = private_weights(model, known, prompts, 0.5, settings.eval.batch_size)
    assert weights[0] == pytest.approx(weights[1], abs=1e-6)


def test_equal_weights_score_as_one_model_with_that_mix(client: Client):
    settings, model, tests = client
    both = TestSet(
        [*tests["math"].examples, *tests["finance"].examples], [*tests["math"].raw, *tests["finance"].raw], []
    )
    weights = [0.3] * len(both.examples)
    found, records = evaluate_weighted(model, both, weights, settings.eval)
    mix = {"shared": 0.7, "private": 0.3}
    expected, plain = evaluate(model, ("shared", "private"), both, settings.eval, mix)
    assert list(found) == list(expected)
    for domain, metrics in expected.items():
        assert found[domain] == pytest.approx(metrics, rel=1e-5)
    for record, other in zip(records, plain, strict=True):
        assert record.pop("nats") == pytest.approx(other.pop("nats"), rel=1e-5)
        assert record == {**other, "private_weight": 0.3}


def test_each_prompt_is_scored_with_its_own_weight(client: Client):
    settings, model, tests = client
    two = TestSet(tests["math"].examples[:2], tests["math"].raw[:2], [])
    losses = []
    for row, weight in enumerate((0.0, 0.5)):
        one = TestSet(two.examples[row : row + 1], two.raw[row : row + 1], [])
        mix = {"shared": 1 - weight, "private": weight}
        losses.append(evaluate(model, ("shared", "private"), one, settings.eval, mix)[0]["math"])
    found, _ = evaluate_weighted(model, two, [0.0, 0.5], settings.eval)
    tokens = [metrics["loss_tokens"] for metrics in losses]
    expected = sum(m["loss"] * n for m, n in zip(losses, tokens, strict=True)) / sum(tokens)
    assert found["math"]["loss"] == pytest.approx(expected)
    swapped, _ = evaluate_weighted(model, two, [0.5, 0.0], settings.eval)
    assert swapped["math"]["loss"] != pytest.approx(expected, abs=1e-4)


def test_the_weight_is_the_private_adapters_or_as_the_authors_code_has_it_the_shared_ones(client: Client):
    settings, model, tests = client
    test = TestSet(tests["math"].examples[:2], tests["math"].raw[:2], [])
    found = {}
    for name in ("private", "shared"):
        feddpa = settings.feddpa.model_copy(update={"weighs": name})
        (_, records), _ = evaluate_personal(
            model, METHODS["feddpa"], test, settings.eval, tests["math"].raw, 0, feddpa, settings.fdlora
        )
        found[name] = [record["private_weight"] for record in records]
    assert found["shared"] == [1 - weight for weight in found["private"]]
    assert max(found["private"]) <= 0.5
