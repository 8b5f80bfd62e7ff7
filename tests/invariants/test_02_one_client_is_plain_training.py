"""Invariant 2: one client, fedavg, R rounds is R plain trainings, each with a fresh optimizer, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fedsdr
from fedsdr.client.update import learning_rate
from fedsdr.config import Settings
from fedsdr.data.batching import data_order
from fedsdr.data.conversation import encode
from fedsdr.federation.client_context import data_of
from fedsdr.model.adapter_files import WEIGHTS, load_adapter
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base
from fedsdr.model.loss import response_loss
from fedsdr.seeds import seed_for


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_one_client_is_plain_training(run_settings: Callable[..., Settings], weight_decay: float) -> None:
    settings = run_settings(
        **{"method": "fedit", "data.domains": ["general"], "client.local_steps": 4,
           "client.weight_decay": weight_decay, "eval.rewritings": False}
    )  # fmt: skip
    folder = fedsdr.run(settings).folder

    (client,) = data_of(settings)[1]
    base = load_base(settings.model)
    conversations = [encode(base.tokenizer, example, example.response, 128) for example in client.train]
    model = LoraModel(base, settings.lora)
    model.initialise("shared", seed_for(0, "shared"))
    model.set(active=("shared",), train=("shared",))
    parameters = model.parameters(("shared",))
    rates = [learning_rate(settings.client, server_round, 2) for server_round in (1, 2)]
    assert rates == pytest.approx([2e-4, 2e-5])  # from learning_rate down to final_rate times it
    for server_round, rate in enumerate(rates, start=1):
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay, fused=True)
        seed = seed_for(0, "client", client.id, "round", server_round)
        order = data_order(len(conversations), 2, seed_for(seed, "stage", "shared", "raw"))
        for _ in range(4):
            loss, num_tokens = response_loss(base, [conversations[index] for index in next(order)])
            optimizer.zero_grad()
            (loss / num_tokens).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        sent = load_adapter(folder / f"server/round-{server_round:04d}")
        plain = model.state("shared")
        assert plain.keys() == sent.keys()
        assert all(torch.equal(plain[key], sent[key]) for key in plain)


def test_one_clients_control_variates_cancel_and_leave_plain_sgd(
    run_settings: Callable[..., Settings],
) -> None:
    """With one client c = c_k to the last bit, so SCAFFOLD's steps are those of plain SGD."""

    def rounds(**more: Any) -> list[bytes]:
        settings = run_settings(
            **{"method": "fedit", "data.domains": ["general"], "client.optimizer": "sgd",
               "client.max_grad_norm": 0, "client.learning_rate": 0.3, "client.final_rate": 0.7,
               "server.num_rounds": 4, "eval.rewritings": False} | more
        )  # fmt: skip
        folder = fedsdr.run(settings).folder
        assert bool(list(folder.rglob("kept.safetensors"))) == bool(more)
        return [(folder / f"server/round-{number:04d}" / WEIGHTS).read_bytes() for number in range(5)]

    plain = rounds()
    assert len(set(plain)) == 5
    assert rounds(**{"client.drift_correction": "scaffold"}) == plain
