"""A client's round without any engine: the reply is the trained change, and the saved state can repeat it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsdr.client.round import Broadcast, Participant, Plan, Reply, load_adapters, run_round
from fedsdr.client.state import load_state
from fedsdr.client.update import local_update
from fedsdr.config import Client, FedALA, Lora, Privacy, Settings
from fedsdr.data.conversation import Conversation
from fedsdr.errors import Diverged
from fedsdr.messages import wire
from fedsdr.methods import AGGREGATIONS, METHODS
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base
from fedsdr.progress import within
from fedsdr.seeds import seed_for

LORA = Lora(rank=2)
TRAINING = Client(local_steps=2, batch_size=2, learning_rate=1e-2, schedule="constant")


@pytest.fixture
def model(tiny_settings: Callable[..., Settings]) -> LoraModel:
    return LoraModel(load_base(tiny_settings().model), LORA)


@pytest.fixture
def client(tmp_path: Path) -> Participant:
    generator = torch.Generator().manual_seed(0)
    texts = [
        Conversation(tuple(torch.randint(3, 400, (12,), generator=generator).tolist()), 3) for _ in range(8)
    ]
    return Participant("math", tmp_path, {"raw": texts[:4], "distilled": texts[4:], "mixed": texts})


@pytest.fixture
def sent(model: LoraModel) -> Broadcast:
    model.initialise("shared", seed=5)
    return Broadcast({key: value.numpy() for key, value in model.state("shared").items()})


def plan(method: str = "fedsdr", aggregation: str = "average") -> Plan:
    rows = METHODS[method], AGGREGATIONS[aggregation]
    return Plan(*rows, LORA, TRAINING, TRAINING, FedALA(), "float32", Privacy(), 3, 1e4, seed=0, base="tiny")


def received(reply: Reply, sent: Broadcast) -> wire.Arrays:
    return wire.decode(reply.arrays, sent.shared, "float32")


def test_a_round_is_the_local_update_from_what_was_sent_and_the_clients_own_adapter(
    model: LoraModel, client: Participant, sent: Broadcast
):
    """Two rounds from the same broadcast: the second continues with the private adapter of the first."""
    for number in (1, 2):
        own = load_state(client.folder, number, has_adapter=True).adapter
        reply = run_round(model, client, plan(), number, sent)
        model.load("shared", sent.shared)
        if own is None:
            model.initialise("private", seed_for(0, "client", "math", "private"))
        else:
            model.load("private", own)
        seed = seed_for(0, "client", "math", "round", number)
        metrics = local_update(model, METHODS["fedsdr"], client.views, TRAINING, 1e-2, seed)
        assert reply.metrics == metrics
        expected = model.state("shared")
        found = received(reply, sent)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(value, expected[key].numpy()) for key, value in found.items())
        assert any(not np.array_equal(value, sent.shared[key]) for key, value in found.items())
        saved = load_state(client.folder, number + 1, has_adapter=True).adapter
        assert saved is not None
        assert all(torch.equal(value, saved[key]) for key, value in model.state("private").items())
    assert own is not None


@pytest.mark.parametrize("method", ["fedsdr", "fedsdr-drop", "fedsdr-once", "fedala", "fdlora"])
def test_a_round_that_is_done_again_gives_the_same_reply(
    model: LoraModel, client: Participant, sent: Broadcast, method: str
):
    """The server was killed before it had finished the round, and asks for it once more."""
    run_round(model, client, plan(method), 1, sent)
    first, again = (run_round(model, client, plan(method), 2, sent) for _ in range(2))
    assert first.metrics == again.metrics
    assert first.arrays.keys() == again.arrays.keys()
    assert all(np.array_equal(value, again.arrays[name]) for name, value in first.arrays.items())


@pytest.mark.parametrize("aggregation", ["ffa", "fedsa"])
def test_what_leaves_is_the_part_that_the_aggregation_sends(
    model: LoraModel, client: Participant, sent: Broadcast, aggregation: str
):
    sends = AGGREGATIONS[aggregation].sends
    part = Broadcast({key: value for key, value in sent.shared.items() if sends(key)})
    reply = run_round(model, client, plan("fedit", aggregation), 1, part)
    assert reply.arrays.keys() == {wire.VALUES}
    assert reply.arrays[wire.VALUES].size == sum(value.size for value in part.shared.values())


def test_an_update_that_the_server_would_drop_is_refused_at_the_client(
    model: LoraModel, client: Participant, sent: Broadcast
):
    """With its reason, and before anything is saved. Not under local privacy: refusing would show how far it moved."""
    strict = replace(plan(), max_norm=1e-6)
    with (
        within("round 1, math"),
        pytest.raises(Diverged, match=r"round 1, math: .* norm .*client.learning_rate"),
    ):
        run_round(model, client, strict, 1, sent)
    assert load_state(client.folder, 2, has_adapter=True).adapter is None
    private = Privacy(kind="local", source="seeded")
    run_round(model, client, replace(strict, method=METHODS["fedit"], privacy=private), 1, sent)


def test_one_tensor_that_is_no_number_is_refused_wherever_it_lies(
    model: LoraModel, client: Participant, sent: Broadcast, monkeypatch: pytest.MonkeyPatch
):
    """The largest of several norms is not NaN if one that is a number comes first."""

    def spoil(model: LoraModel, *rest: object) -> dict[str, float]:
        model.parameters(("shared",))[-1].data.fill_(float("nan"))
        return {}

    monkeypatch.setattr("fedsdr.client.round.local_update", spoil)
    with pytest.raises(Diverged, match=r"a tensor .* has the norm nan"):
        run_round(model, client, plan(), 1, sent)


def test_what_the_aggregation_added_to_the_base_is_loaded_with_the_shared_adapter(
    model: LoraModel, client: Participant, sent: Broadcast
):
    residual = {key: np.ones_like(value) for key, value in sent.shared.items()}
    load_adapters(model, client, plan(), 1, replace(sent, residual=residual), LORA.rank)
    assert all(layer.residual is not None for layer in model.layers.values())
    load_adapters(model, client, plan(), 1, sent, LORA.rank)
    assert all(layer.residual is None for layer in model.layers.values())
