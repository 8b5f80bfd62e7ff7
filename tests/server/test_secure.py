"""The server's side of a secure sum: what it takes from clients, and what a wrong share does."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsdr.client.secure import Peers
from fedsdr.deployment.certificates import node_key
from fedsdr.errors import UserError
from fedsdr.messages import secure_sum
from fedsdr.messages.secure_sum import Card, Secrets
from fedsdr.recipe import check_settings
from fedsdr.server.secure import (
    SecureStrategy,
    check_card,
    check_secrets,
    check_signature,
    check_words,
    secure_total,
)
from fedsdr.server.validate import Rejected

OWN = secure_sum.draw_secrets()
GOOD = {"mask": secure_sum.public(OWN.mask), "seal": secure_sum.public(OWN.seal), "signature": b""}
NAMES = ("a", "b", "c", "d")


def given(**values: Any) -> RecordDict:
    return RecordDict({"given": ConfigRecord(values)})


@pytest.mark.parametrize(
    ("card", "metrics", "told"),
    [
        (GOOD | {"mask": bytes(31)}, {}, "no keys"),
        (GOOD | {"seal": "x" * 32}, {}, "no keys"),
        (GOOD | {"signature": bytes(10**6)}, {}, "no keys"),
        (GOOD | {"more": 1}, {}, "no keys"),
        ({"mask": bytes(32)}, {}, "no keys"),
        (GOOD | {"mask": bytes(32)}, {}, "no key can be agreed on"),
        (GOOD | {"seal": bytes([1]) + bytes(31)}, {}, "no key can be agreed on"),
        (GOOD, {"num_examples": 10**9}, "is not the 3"),
        (GOOD, {"round": 4}, "answers round 4"),
        (GOOD, {"secret": 1.0}, "not on the allow-list"),
    ],
)
def test_a_training_reply_without_sound_keys_and_numbers_is_dropped(card: Any, metrics: Any, told: str):
    numbers = {"round": 5, "num_examples": 3, "seconds": 1.0}
    good = RecordDict({"card": ConfigRecord(GOOD), "metrics": MetricRecord(numbers)})
    assert check_card(good, 3, 5, b"", None)[0] == Card(GOOD["mask"], GOOD["seal"], 3, b"")
    bad = RecordDict({"card": ConfigRecord(card), "metrics": MetricRecord(numbers | metrics)})
    with pytest.raises(Rejected, match=told):
        check_card(bad, 3, 5, b"", None)


@pytest.mark.usefixtures("flower_task")
def test_a_client_whose_signature_is_not_by_its_registered_key_is_dropped_alone(tmp_path: Path):
    """It stopped every sum that it was asked for: its honest peers refuse a list with a bad signature."""
    nodes, keys = tmp_path / "nodes", dict[str, Peers]()
    nodes.mkdir()
    for number, name in enumerate("abc"):
        private, public = node_key()
        (tmp_path / name).write_bytes(private)
        keys[name] = Peers(tmp_path / name, tmp_path, 0)
        (nodes / f"{name}.json").write_text(json.dumps({"node-id": number, "key": public.decode()}))
    values = {"federation": {"nodes": str(nodes)}, "privacy": {"secure_aggregation": True}}
    prepared, roster = {name: {"num_train": 3, "num_test": 1} for name in keys}, dict(enumerate(keys))
    start = {"q.lora_A.weight": np.zeros((1, 2), np.float32), "q.lora_B.weight": np.ones((2, 1), np.float32)}
    strategy = SecureStrategy(check_settings(values, "test"), roster, prepared, start, {}, {})
    config = ConfigRecord({"run": "run", "settings": "{}"})
    messages = list(strategy.configure_train(5, strategy.record(), config, None))
    replies = []
    for message in messages:
        message.metadata.__dict__["_message_id"] = f"to {message.metadata.dst_node_id}"
        name = roster[message.metadata.dst_node_id]
        text = Card(GOOD["mask"], GOOD["seal"], 3, b"").signed(strategy.about)
        signer, text = {"a": ("a", text), "b": ("a", text), "c": ("c", text + b"of another round")}[name]
        card = ConfigRecord(GOOD | {"signature": keys[signer].sign(text)})
        numbers = MetricRecord({"round": 5, "num_examples": 3, "seconds": 1.0})
        replies.append(Message(RecordDict({"card": card, "metrics": numbers}), reply_to=message))
    assert [name for name, _ in strategy.exchange.usable(replies, strategy._check_card)] == ["a"]
    dropped = {event["client"]: event["reason"] for event in strategy.exchange.events}
    assert dropped.keys() == {"b", "c"}
    assert all("not signed by its registered key" in reason for reason in dropped.values())


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"a": bytes(66)},
        {"a": bytes(66), "b": bytes(65)},
        {"a": bytes(66), "b": 1},
        {"a": bytes(66), "c": bytes(66)},
    ],
)
def test_shares_of_other_clients_or_sizes_are_dropped(values: Any):
    both = {"a": bytes(66), "b": bytes(66)}
    assert check_secrets("ba", 66, 2, given(**both)) == both
    with pytest.raises(Rejected):
        check_secrets("ab", 66, 2, given(**values))


def test_shares_may_lack_those_that_the_client_could_not_decrypt():
    assert check_secrets("ab", 66, 0, given(a=bytes(66))) == {"a": bytes(66)}
    with pytest.raises(Rejected, match="other clients"):
        check_secrets("ab", 66, 0, given(a=bytes(66), c=bytes(66)))


@pytest.mark.parametrize(
    "values", [{}, {"signature": "x"}, {"signature": bytes(257)}, {"signature": b"", "b": 1}]
)
def test_what_is_no_signature_is_dropped(values: Any):
    assert check_signature(given(signature=b"any")) == b"any"
    with pytest.raises(Rejected):
        check_signature(given(**values))


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"values": np.zeros(4, np.uint32), "more": np.zeros(4, np.uint32)},
        {"values": np.zeros(5, np.uint32)},
        {"values": np.zeros((2, 2), np.uint32)},
        {"values": np.zeros(4, np.float32)},
        {"values": np.zeros(4, np.int32)},
    ],
)
def test_what_is_no_masked_vector_is_dropped(arrays: Any):
    good = RecordDict({"given": ArrayRecord({"values": Array(np.arange(4, dtype=np.uint32))})})
    assert check_words(4, good).tolist() == [0, 1, 2, 3]
    with pytest.raises(Rejected):
        check_words(
            4, RecordDict({"given": ArrayRecord({key: Array(value) for key, value in arrays.items()})})
        )


@pytest.fixture
def replaced() -> Callable[..., tuple[Any, list[str]]]:
    """Return a sum of four clients of which d is lost, where a's share of one of them is replaced."""

    def run(owner: str, share: bytes) -> tuple[Any, list[str]]:
        own = {name: secure_sum.draw_secrets() for name in NAMES}
        cards = {name: Card(secure_sum.public(one.mask), bytes(32), 1, b"") for name, one in own.items()}
        shares = {name: _split(own[name], name == "d") for name in NAMES}

        def query(step: str, asked: Any, *rest: Any) -> Iterator[tuple[str, Any]]:
            for place, name in enumerate(asked):
                if step == "shares":
                    yield name, dict.fromkeys(NAMES, bytes(148))
                elif step == "masked" and name != "d":
                    others = {other: card.mask for other, card in cards.items() if other != name}
                    yield name, secure_sum.masked(np.full(8, 5, np.uint32), name, own[name], others, b"")
                elif step == "confirm":
                    yield name, b""
                elif step == "unmask":
                    yield (
                        name,
                        {
                            whose: share if (name, whose) == ("a", owner) else shares[whose][place]
                            for whose in NAMES
                        },
                    )

        return secure_total(query, cards, b"", 8, 0, lambda names: None)

    return run


def _split(own: Secrets, is_lost: bool) -> list[bytes]:
    return secure_sum.split(own.mask if is_lost else own.seed, 4, 3)


def test_a_wrong_share_of_a_lost_clients_key_is_noticed(replaced: Callable[..., tuple[Any, list[str]]]):
    total, survivors = replaced("nobody", b"")
    assert survivors == ["a", "b", "c"]
    assert total.tolist() == [15] * 8
    with pytest.raises(UserError, match="wrong share"):
        replaced("d", bytes(secure_sum.SHARE_BYTES))


def test_a_wrong_share_of_a_seed_leaves_no_sum(replaced: Callable[..., tuple[Any, list[str]]]):
    with pytest.raises(UserError, match="wrong share"):  # of no secret of 32 bytes, but by a chance of 2^-265
        replaced("b", bytes(secure_sum.SHARE_BYTES))
