"""Token masks: which tokens of a raw response count, and that they follow from the base alone."""

import math
from collections.abc import Callable
from statistics import median

import pytest

import fedsdr
from fedsdr.config import Settings, TokenMask
from fedsdr.data.conversation import encode
from fedsdr.distill.token_mask import weigh_tokens, weight
from fedsdr.federation.client_context import data_of
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base
from fedsdr.model.loss import token_losses
from fedsdr.storage import read_lines


def test_a_hard_mask_leaves_out_what_is_above_the_perplexity():
    mask = TokenMask(perplexity=4.0)
    assert [weight(-math.log(p), mask) for p in (1.0, 0.26, 0.24, 1e-9)] == [1, 1, 0, 0]


def test_a_soft_mask_falls_with_the_surprise_and_never_to_nothing():
    """Of p = 1/4 e^-n the surprise beyond log 4 is n nats: weight 1 / (1 + n)."""
    mask = TokenMask(perplexity=4.0, soft=True)
    found = [weight(math.log(4) + n, mask) for n in (-1, 0, 1, 9)]
    assert found == pytest.approx([1, 1, 1 / 2, 1 / 10])


def test_a_mask_is_the_bases_whatever_the_adapters_hold(tiny_settings: Callable[..., Settings]):
    settings = tiny_settings(**{"data.domains": ["general"]})
    model = LoraModel(load_base(settings.model), settings.lora)
    for layer in model.layers.values():
        layer.A["shared"].data.fill_(0.1)
        layer.B["shared"].data.fill_(0.1)
    (client,) = data_of(settings)[1]
    raw = [encode(model.base.tokenizer, example, example.response, 128) for example in client.train]
    with model.inference(()):
        losses = token_losses(model.base, raw, 3)
    middle = math.exp(median(loss for some in losses for loss in some))
    found = weigh_tokens(model, raw, TokenMask(perplexity=middle), 3)
    assert [one.ids for one in found] == [one.ids for one in raw]
    assert [list(one.weights) for one in found] == [
        [float(loss <= math.log(middle)) for loss in some] for some in losses
    ]
    assert 0.4 < sum(one.weight for one in found) / sum(one.num_response_tokens for one in raw) < 0.6


def test_a_mask_that_leaves_nothing_out_is_fedit(tiny_settings: Callable[..., Settings]):
    """Where every step takes all examples; and with the paper's threshold a random model learns nothing."""

    def losses(**chosen: object) -> list[float]:
        settings = tiny_settings(
            **{"data.domains": ["math"], "server.num_rounds": 1, "client.batch_size": 6, **chosen}
        )
        log = read_lines(fedsdr.run(settings).folder / "metrics.jsonl")
        return [event["train/shared/loss"] for event in log if event["event"] == "train"]

    fedit = losses(method="fedit")
    assert losses(**{"method": "token-mask", "token_mask.perplexity": 1e9}) == pytest.approx(fedit, rel=1e-5)
    assert losses(method="token-mask") == [0.0]
