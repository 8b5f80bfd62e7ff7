"""Invariant 13: with secure aggregation the server has the sum of the updates, bit for bit, and no update."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from safetensors.numpy import load_file

import fedsdr
from fedsdr.client import secure
from fedsdr.config import Settings
from fedsdr.federation.local_engine import LocalGrid
from fedsdr.messages import secure_sum
from fedsdr.messages.flower import CLIENT_FAILED
from fedsdr.messages.wire import pack, unpack
from fedsdr.storage import read_json, read_lines

SECURE = {"privacy.secure_aggregation": True, "method": "fedsdr"}
FOUR = {"data.domains": ["finance", "general", "math", "medicine"]}
FIVE = {"data.domains": ["code", *FOUR["data.domains"]]}
CENTRAL = {
    "privacy.kind": "central",
    "privacy.source": "seeded",
    "privacy.noise_multiplier": 1e-3,
    "privacy.clipping_norm": 0.1,
}
NAMES = dict(enumerate(FOUR["data.domains"], start=1))
"""Node -> client."""
WINDOW = 16
"""Bytes of a row: a leak of so many is found."""


def adapter(folder: Path, number: int) -> dict[str, np.ndarray]:
    return load_file(folder / f"server/round-{number:04d}/adapter_model.safetensors")


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, str], np.ndarray]:
    """What each client of each round had to sum, by round and client."""
    kept: dict[tuple[int, str], np.ndarray] = {}
    begin = secure.begin

    def keeping(folder: Path, peers: None, server_round: int, about: bytes, change: Any, *more: Any) -> Any:
        kept[server_round, folder.parent.name] = change
        return begin(folder, peers, server_round, about, change, *more)

    monkeypatch.setattr("fedsdr.federation.client_app.begin", keeping)
    return kept


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return `lose(*lost)`: of each (step, round, node), that node does not answer that step."""
    answer = LocalGrid._answer

    def armed(*lost: tuple[str, int, int]) -> None:
        def losing(grid: LocalGrid, message: Message) -> Message:
            config, about = message.content["config"], message.metadata
            step = config.get("step", about.message_type)
            if (step, config["round"], about.dst_node_id) in lost:
                return Message(Error(CLIENT_FAILED, "lost"), reply_to=message)
            return answer(grid, message)

        monkeypatch.setattr(LocalGrid, "_answer", losing)

    return armed


def expected(
    folder: Path, changes: dict[tuple[int, str], np.ndarray], number: int, alive: Iterable[str]
) -> Any:
    """The adapter after a round: before, and the sum of the encoded changes over the weights of who is in it."""
    nums = {
        e["client"]: e["num_train"] for e in read_lines(folder / "metrics.jsonl") if e["event"] == "prepare"
    }
    weights = secure_sum.weights_of(nums, 0)
    before = adapter(folder, number - 1)
    total = sum(
        (secure_sum.encode(changes[number, name], weights[name], 8.0) for name in alive),
        np.zeros(pack(before).size, np.uint32),
    )
    new = pack(before) + secure_sum.decode(total, 8.0, len(nums)) / sum(weights[name] for name in alive)
    return unpack(new.astype(np.float32), {key: value.shape for key, value in before.items()})


def require_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert all((found[key] == wanted[key]).all() for key in wanted)
    assert found.keys() == wanted.keys()


@pytest.mark.parametrize("step", ["none", "train", "shares", "masked", "confirm", "unmask"])
def test_the_global_model_moves_by_the_sum_bit_for_bit_whoever_is_lost(
    run_settings: Callable[..., Settings],
    changes: dict[tuple[int, str], np.ndarray],
    lose: Callable[..., None],
    step: str,
):
    lose((step, 1, 2))
    folder = fedsdr.run(run_settings(**SECURE | FOUR)).folder
    alive = [name for node, name in NAMES.items() if node != 2 or step in ("none", "confirm", "unmask")]
    if step != "train":  # else the list of the round, and so the weights, lack it
        require_equal(adapter(folder, 1), expected(folder, changes, 1, alive))
    require_equal(adapter(folder, 2), expected(folder, changes, 2, NAMES.values()))
    events = read_lines(folder / "metrics.jsonl")
    assert [e["client"] for e in events if e["event"] == "train" and e["round"] == 1] == alive
    dropped = [(e["client"], e["round"], e["reason"]) for e in events if e["event"] == "dropped"]
    assert len(dropped) == (step != "none")
    if step not in ("none", "train"):
        assert dropped == [(NAMES[2], 1, f"secure aggregation, {step}: the client failed: lost")]


@pytest.mark.parametrize("step", ["shares", "masked"])
def test_a_sum_below_the_quorum_is_not_unmasked_and_the_run_goes_on_when_its_clients_are_back(
    run_settings: Callable[..., Settings], lose: Callable[..., None], step: str
):
    """0.7 of 5 sampled is 4. One is lost in training, and one of the 4 that are left: 3, enough to unmask."""
    lose(("train", 1, 5), (step, 1, 2))
    settings = run_settings(**SECURE | FIVE, **{"server.num_rounds": 1, "server.quorum": 0.7})
    folder = Path(settings.run.dir)
    with pytest.raises(fedsdr.UserError, match=r"3 of 5 sampled.*server\.quorum = 0\.7 needs 4"):
        fedsdr.run(settings)
    assert not (folder / "server/survivors.json").exists()
    lose(("train", 1, 5))
    fedsdr.resume(folder)
    assert read_json(folder / "server/survivors.json")["clients"] == FIVE["data.domains"][:4]


@pytest.mark.parametrize("step", ["confirm", "unmask"])
def test_a_client_that_is_lost_after_its_vector_is_in_the_sum_counts_for_the_quorum(
    run_settings: Callable[..., Settings], lose: Callable[..., None], step: str
):
    """All four are in the sum, and the three that are left can unmask it."""
    lose((step, 1, 2))
    folder = fedsdr.run(
        run_settings(**SECURE | FOUR, **{"server.num_rounds": 1, "server.quorum": 1.0})
    ).folder
    trained = [e["client"] for e in read_lines(folder / "metrics.jsonl") if e["event"] == "train"]
    assert trained == FOUR["data.domains"]


def test_it_is_the_plain_mean_up_to_the_rounding_of_the_sum(finished: Callable[..., Path]):
    secure, plain = finished(**SECURE), finished(method="fedsdr")
    for key, value in adapter(plain, 1).items():
        assert np.abs(adapter(secure, 1)[key] - value).max() < 3 * 8 / 2**30 + 2e-7
    assert np.abs(pack(adapter(plain, 1)) - pack(adapter(plain, 0))).max() > 1e-4


def test_noise_of_central_privacy_comes_on_top_of_the_sum_of_clipped_changes(finished: Callable[..., Path]):
    secure, plain = finished(**SECURE | CENTRAL), finished(method="fedsdr", **CENTRAL)
    step = 0.1 * 1e-3 * 2.0**-20
    for key, value in adapter(plain, 1).items():
        assert np.abs(adapter(secure, 1)[key] - value).max() < 1e-8 + step
    page = (secure / "report.html").read_text()
    assert "Secure aggregation" in page
    assert "Secure aggregation" not in (plain / "report.html").read_text()
    spent = [e["epsilon"] for e in read_lines(secure / "metrics.jsonl") if e["event"] == "round"]
    assert spent == [e["epsilon"] for e in read_lines(plain / "metrics.jsonl") if e["event"] == "round"]


def test_the_order_of_replies_changes_no_byte(
    run_settings: Callable[..., Settings],
    finished: Callable[..., Path],
    results: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
):
    straight = finished(**SECURE)
    send_and_receive = LocalGrid.send_and_receive

    def reversed_replies(grid: LocalGrid, messages: Iterable[Message], **options: Any) -> Iterable[Message]:
        return list(send_and_receive(grid, messages, **options))[::-1]

    monkeypatch.setattr(LocalGrid, "send_and_receive", reversed_replies)
    assert results(fedsdr.run(run_settings(**SECURE)).folder) == results(straight)


@pytest.mark.parametrize("call", range(1, 10, 2))
def test_a_run_killed_between_the_steps_of_a_sum_leaves_the_same_bytes(
    run_settings: Callable[..., Settings],
    finished: Callable[..., Path],
    results: Callable[[Path], Any],
    kill_at: Callable[..., Any],
    call: int,
):
    """`Session._save` is called by each of three clients in each of three steps."""
    settings = run_settings(**SECURE)
    with kill_at("fedsdr.client.secure.Session._save", call, late=call % 4 == 1):
        fedsdr.run(settings)
    assert results(fedsdr.resume(Path(settings.run.dir)).folder) == results(finished(**SECURE))


def test_a_round_cut_short_after_its_sum_was_agreed_on_is_made_again_by_the_same_clients(
    run_settings: Callable[..., Settings],
    lose: Callable[..., None],
    kill_at: Callable[..., Any],
):
    """Client 2 was lost, and is back. A sum with it, less the one without it, would be its update."""
    settings = run_settings(**SECURE | FOUR, **{"server.num_rounds": 1})
    folder = Path(settings.run.dir)
    with kill_at("fedsdr.federation.server_app.save_round", 2):
        lose(("masked", 1, 2))
        fedsdr.run(settings)
    lose()
    fedsdr.resume(folder)
    alive = [name for node, name in NAMES.items() if node != 2]
    assert read_json(folder / "server/survivors.json") == {"round": 1, "clients": alive}
    trained = [e["client"] for e in read_lines(folder / "metrics.jsonl") if e["event"] == "train"]
    assert trained == alive


def test_a_round_made_again_after_its_sum_was_agreed_on_leaves_the_same_bytes(
    run_settings: Callable[..., Settings],
    lose: Callable[..., None],
    kill_at: Callable[..., Any],
):
    """The mean of central privacy is over the four that were asked, not over the three in the sum."""
    lose(("masked", 1, 2))
    settings = run_settings(**SECURE | FOUR | CENTRAL, **{"server.num_rounds": 1})
    with kill_at("fedsdr.federation.server_app.save_round", 2):
        fedsdr.run(settings)
    resumed = fedsdr.resume(Path(settings.run.dir)).folder
    straight = fedsdr.run(run_settings(**SECURE | FOUR | CENTRAL, **{"server.num_rounds": 1})).folder
    require_equal(adapter(resumed, 1), adapter(straight, 1))


def test_no_single_update_is_in_any_message(
    recorded: Callable[..., tuple[Path, list[tuple[Message, Message]]]],
    wire: Callable[[Message], bytes],
    changes: dict[tuple[int, str], np.ndarray],
):
    """Neither a client's adapter, nor its change, nor the encoded one; without secure aggregation the first is.

    Zeros are left out, and rows that the broadcasts have.
    """

    def windows(data: bytes) -> set[bytes]:
        return {data[start : start + WINDOW] for start in range(len(data) - WINDOW + 1)}

    def rows(values: np.ndarray) -> set[bytes]:
        return {row.tobytes() for row in values[: len(values) // 4 * 4].reshape(-1, 4) if row.all()}

    folder, exchanges = recorded(**SECURE)
    sent = set().union(*(windows(wire(message)) for pair in exchanges for message in pair))
    kinds = {message.content["config"].get("step", "") for message, _ in exchanges}
    assert kinds == {"", "shares", "masked", "confirm", "unmask"}
    assert rows(pack(adapter(folder, 1))) & sent  # the search finds what is sent
    nums = {
        e["client"]: e["num_train"] for e in read_lines(folder / "metrics.jsonl") if e["event"] == "prepare"
    }
    weights = secure_sum.weights_of(nums, 0)
    assert len(changes) == 2 * 3
    private: set[bytes] = set()
    for (number, name), change in changes.items():
        before = pack(adapter(folder, number - 1))
        private |= rows((before + change).astype(np.float32)) | rows(change.astype(np.float32)) | rows(change)
        private |= rows(secure_sum.encode(change, weights[name], 8.0))
    assert len(private) > 1000
    assert not private & sent
    _, exchanges = recorded(method="fedsdr")
    sent = set().union(*(windows(wire(message)) for pair in exchanges for message in pair))
    assert private & sent


def test_what_leaves_in_the_steps_of_a_sum_is_listed(
    recorded: Callable[..., tuple[Path, list[tuple[Message, Message]]]],
):
    folder, exchanges = recorded(**SECURE)
    size = pack(adapter(folder, 0)).size
    names = ("finance", "general", "math")
    for message, reply in exchanges:
        kind, step = message.metadata.message_type, message.content["config"].get("step", "")
        if kind == "train":
            assert set(reply.content) == {"card", "metrics"}
            assert {key: len(value) for key, value in reply.content["card"].items()} == {
                "mask": 32,
                "seal": 32,
                "signature": 0,
            }
        elif step == "masked":
            (array,) = reply.content["given"].values()
            assert array.numpy().shape == (size,) and array.numpy().dtype == np.uint32
        elif step:
            sizes = {"shares": dict.fromkeys(names, 148), "confirm": {"signature": 0}}
            sizes["unmask"] = dict.fromkeys(names, 66)
            assert {key: len(value) for key, value in reply.content["given"].items()} == sizes[step]


def test_a_sum_that_is_none_of_updates_stops_the_run_with_the_reason(
    run_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
):
    """A client that sends anything; or a share that is wrong."""
    honest = secure.Session.masked

    def lying(session: secure.Session, sealed: Any) -> Any:
        words = honest(session, sealed)
        return words + secure_sum.expand(bytes(32), words.size) if session.client == "math" else words

    monkeypatch.setattr(secure.Session, "masked", lying)
    with pytest.raises(
        fedsdr.UserError, match="secure sum of finance, general, math is not a sum of updates"
    ):
        fedsdr.run(run_settings(**SECURE))


@pytest.mark.parametrize("what", ["byte order", "half precision", "residual", "control variates", "another"])
def test_a_server_cannot_make_the_other_clients_changes_vanish_by_what_it_sends_them_alone(
    run_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, what: str
):
    """The sum would be one client's change. Clients refuse an array that their settings do not imply."""
    answer = LocalGrid._answer

    def crafted(values: np.ndarray) -> dict[str, np.ndarray]:
        factors = {"residual": np.ones(6, np.float32), "residual_rank": np.array([1])}
        return {
            "byte order": {"values": values.view(">f4")},
            "half precision": {"values": values.astype(np.float16)},
            "residual": {"values": values, **factors},
            "control variates": {"values": values, "control_variates": values},
            "another": {"values": values, "x": values},
        }[what]

    def sending(grid: LocalGrid, message: Message) -> Message:
        content, about = message.content, message.metadata
        if about.message_type == "train" and about.dst_node_id != 1:
            arrays = crafted(content["arrays"]["values"].numpy())
            record = ArrayRecord({name: Array(value) for name, value in arrays.items()})
            message.content = RecordDict({**content, "arrays": record})
        return answer(grid, message)

    monkeypatch.setattr(LocalGrid, "_answer", sending)
    settings = run_settings(**SECURE)
    with pytest.raises(fedsdr.UserError, match="the server's message"):
        fedsdr.run(settings)
    assert not list(Path(settings.run.dir).rglob("confirmed.json"))  # there was no sum


def test_a_client_with_a_key_that_no_one_can_use_costs_its_own_update_alone(
    run_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
):
    """Its honest peers failed on it in later steps, and were named."""

    def bad(folder: Path, *more: Any) -> Any:
        card = secure.begin(folder, *more)
        return replace(card, mask=bytes(32)) if folder.parent.name == "math" else card

    monkeypatch.setattr("fedsdr.federation.client_app.begin", bad)
    settings = run_settings(**SECURE | FOUR, **{"server.num_rounds": 1})
    events = read_lines(fedsdr.run(settings).folder / "metrics.jsonl")
    trained = [e["client"] for e in events if e["event"] == "train"]
    assert trained == ["finance", "general", "medicine"]
    (dropped,) = [e for e in events if e["event"] == "dropped"]
    assert dropped["client"] == "math" and "no key" in dropped["reason"]


def test_two_clients_are_too_few_before_any_of_them_works(run_settings: Callable[..., Settings]):
    with pytest.raises(fedsdr.UserError, match="needs 3 clients in each round, but 2 are sampled"):
        fedsdr.run(run_settings(**SECURE, **{"data.domains": ["finance", "math"]}))
