"""A client in a secure sum refuses what would show its update, whatever the server sends."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedsdr.client.secure import Peers, Session, begin
from fedsdr.deployment.certificates import node_key
from fedsdr.errors import Diverged, UserError
from fedsdr.messages import secure_sum
from fedsdr.messages.secure_sum import Card, round_digest
from fedsdr.server.secure import secure_total

NAMES = ("a", "b", "c", "d")
SIZE = 20
SENT = {"values": np.zeros(SIZE, np.float32)}
ABOUT = round_digest("run", 1, "{}", SENT)


class Group:
    """Clients with keys of nodes, and a server that asks them as it likes."""

    def __init__(self, folder: Path, names: tuple[str, ...] = NAMES, least: int = 0) -> None:
        self.folder, self.names, self.peers = folder, names, dict[str, Peers]()
        self.lost: set[tuple[str, str]] = set()
        """Step and client: it does not answer then, and the server asks it nothing more."""
        self.spoilt: set[str] = set()
        """Clients that get no share that they can decrypt from a."""
        self.survivors: list[str] = []
        rng = np.random.default_rng(1)
        self.changes = {name: rng.normal(size=SIZE) for name in names}
        public = {}
        for name in names:
            private, public[name] = node_key()
            (folder / name / "peers").mkdir(parents=True)
            (folder / name / "node.key").write_bytes(private)
            self.peers[name] = Peers(folder / name / "node.key", folder / name / "peers", least)
        for name in names:
            for other in set(names) - {name}:
                (folder / name / "peers" / f"{other}.pub").write_bytes(public[other])

    def begin(self, name: str, about: bytes = ABOUT, most: float | None = None) -> Card:
        return begin(
            self.folder / name / "secure", self.peers[name], 1, about, self.changes[name], 1 + ord(name), most
        )

    def cards(self) -> dict[str, Card]:
        return {name: self.begin(name) for name in self.names}

    def session(self, name: str) -> Session:
        """Reread from disk, as after kill -9."""
        return Session(self.folder / name / "secure", name, self.peers[name], 1)

    def query(
        self, step: str, given: Mapping[str, ConfigRecord], check: Any, needed: int, kind: type = ConfigRecord
    ) -> Iterator[tuple[str, Any]]:
        num = 0
        for name, record in given.items():
            if (step, name) in self.lost:
                continue
            num, words = num + 1, dict(record)
            session = self.session(name)
            match step:
                case "shares":
                    sealed = session.shares(words["roll"])
                    bad = self.spoilt if name == "a" else ()
                    yield name, sealed | {receiver: bytes(148) for receiver in bad}
                case "masked":
                    yield name, session.masked(words)
                case "confirm":
                    yield name, session.confirm(words["survivors"])
                case "unmask":
                    yield name, check(RecordDict({"given": ConfigRecord({**session.unmask(words)})}))
        if num < needed:
            raise UserError(f"{num} of {len(given)} in {step}, needs {needed}")

    def total(self, cards: Mapping[str, Card], about: bytes = ABOUT, cap: int = 0) -> tuple[Any, list[str]]:
        return secure_total(self.query, cards, about, SIZE, cap, self.survivors.extend)

    def expected(self, survivors: list[str], most: float | None = None, cap: int = 0) -> np.ndarray:
        weights = secure_sum.weights_of({name: 1 + ord(name) for name in self.names}, cap)
        bound = secure_sum.bound_of(most, len(self.names))
        return sum(
            (secure_sum.encode(self.changes[name], weights[name], bound) for name in survivors),
            np.zeros(SIZE, np.uint32),
        )


@pytest.fixture
def group(tmp_path: Path) -> Callable[..., Group]:
    num = iter(range(9))
    return lambda *args, **more: Group(tmp_path / str(next(num)), *args, **more)


def rolled(one: Group, cards: Mapping[str, Card] | None = None) -> tuple[str, dict[str, dict[str, bytes]]]:
    """The list of a round, and the sealed shares of all by their receiver."""
    roll = secure_sum.write_roll(cards or one.cards(), 0)
    sealed = {name: one.session(name).shares(roll) for name in one.names}
    return roll, {name: {sender: sealed[sender][name] for sender in one.names} for name in one.names}


@pytest.mark.parametrize("step", ["shares", "masked", "confirm", "unmask"])
@pytest.mark.parametrize("lost", [(), ("a",), ("d",)])
def test_the_sum_is_that_of_the_clients_that_are_left_bit_for_bit(
    group: Callable[..., Group], step: str, lost: tuple[str, ...]
):
    one = group()
    cards = one.cards()
    one.lost = {(step, name) for name in lost}
    total, survivors = one.total(cards, cap=99)
    assert survivors == [name for name in NAMES if name not in lost or step in ("confirm", "unmask")]
    assert one.survivors == survivors
    assert (total == one.expected(survivors, cap=99)).all()


def test_of_four_clients_two_may_not_be_lost(group: Callable[..., Group]):
    one = group()
    cards = one.cards()
    one.lost = {("masked", "a"), ("confirm", "b")}
    with pytest.raises(UserError, match="2 of 3 in confirm, needs 3"):
        one.total(cards)


def test_secrets_are_readable_by_their_owner_alone_and_gone_once_they_have_served(
    group: Callable[..., Group],
):
    one = group()
    cards = one.cards()
    for name in NAMES:
        files = list((one.folder / name / "secure").iterdir())
        assert len(files) == 2
        assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    one.total(cards)
    for name in NAMES:
        assert [path.name for path in (one.folder / name / "secure").iterdir()] == ["confirmed.json"]
        with pytest.raises(UserError, match="has no update of round 1"):
            one.session(name)


def test_a_key_that_the_server_swapped_is_refused(group: Callable[..., Group]):
    """It would know the masks that the client shares with that one."""
    one = group()
    cards = one.cards()
    own = secure_sum.draw_secrets()
    cards["b"] = Card(
        secure_sum.public(own.mask), cards["b"].seal, cards["b"].num_examples, cards["b"].signature
    )
    with pytest.raises(UserError, match="client b did not sign"):
        one.session("a").shares(secure_sum.write_roll(cards, 0))


def test_a_weight_that_the_server_changed_is_refused(group: Callable[..., Group]):
    """With n_k = 0 for all others the sum would be the one client's update."""
    one = group()
    cards = one.cards()
    others = {name: Card(c.mask, c.seal, 0, c.signature) for name, c in cards.items() if name != "a"}
    with pytest.raises(UserError, match="did not sign"):
        one.session("a").shares(secure_sum.write_roll(others | {"a": cards["a"]}, 0))
    with pytest.raises(UserError, match="this client's own keys"):
        one.session("b").shares(secure_sum.write_roll(others | {"a": cards["a"]}, 0))


@pytest.mark.parametrize(
    "sent",
    [
        {"values": np.ones(SIZE, np.float32)},
        {"values": SENT["values"].astype(">f4")},
        {"values": SENT["values"].view(np.int32)},
        {"values": SENT["values"].reshape(2, -1)},
        {"residual": SENT["values"]},
        SENT | {"residual": np.ones(1, np.float32)},
        SENT | {"control_variates": SENT["values"]},
    ],
    ids=["other values", "byte order", "type", "shape", "name", "a residual", "control variates"],
)
def test_clients_that_were_sent_different_models_do_not_sum(
    group: Callable[..., Group], sent: dict[str, np.ndarray]
):
    """Else the server could train all but one of them to no change."""
    one = group()
    cards = one.cards()
    cards["a"] = one.begin("a", round_digest("run", 1, "{}", sent))
    roll = secure_sum.write_roll(cards, 0)
    for name, other in (("a", "b"), ("b", "a")):
        with pytest.raises(UserError, match=f"client {other} did not sign the keys .* another model"):
            one.session(name).shares(roll)


def test_a_client_whose_key_no_one_knows_is_refused(group: Callable[..., Group]):
    """The server could invent clients, of whose updates it knows all."""
    one = group()
    cards = one.cards()
    cards["../a"] = cards.pop("d")
    with pytest.raises(UserError, match=r"contains no key of client \.\./a"):
        one.session("a").shares(secure_sum.write_roll(cards, 0))


def test_too_few_clients_are_refused(group: Callable[..., Group]):
    one = group(NAMES[:2])
    cards = one.cards()
    with pytest.raises(
        UserError, match="a sum of 2 of 2 clients is too small for this client; it requires 3"
    ):
        one.session("a").shares(secure_sum.write_roll(cards, 0))
    four = group(least=5)
    cards = four.cards()
    with pytest.raises(UserError, match="it requires 5"):
        four.session("a").shares(secure_sum.write_roll(cards, 0))


def test_too_few_survivors_and_others_than_masked_are_refused(group: Callable[..., Group]):
    one = group()
    _, parts = rolled(one)
    session = one.session("a")
    with pytest.raises(UserError, match="a sum of 2 of 4 clients"):
        session.masked({name: parts["a"][name] for name in "ab"})
    with pytest.raises(UserError, match="is not the list of this round"):
        session.masked({name: parts["a"][name] for name in "bcd"})
    session.masked({name: parts["a"][name] for name in "abc"})
    session = one.session("a")
    for names in (["b", "c", "d"], ["a", "b", "c", "d"], ["a", "b", "b"], ["a", "b"]):
        with pytest.raises(UserError, match=r"is not the list of this round|is too small"):
            session.confirm(names)
    session.confirm(["c", "b", "a"])


def test_no_step_is_answered_twice_nor_out_of_order(group: Callable[..., Group]):
    """Two masked vectors of one session with other lists would differ by a mask."""
    one = group()
    roll, parts = rolled(one)
    with pytest.raises(UserError, match="roll is out of order"):
        one.session("a").shares(roll)
    with pytest.raises(UserError, match="survivors is out of order"):
        one.session("a").confirm(list(NAMES))
    one.session("a").masked(parts["a"])
    with pytest.raises(UserError, match="sealed is out of order"):
        one.session("a").masked({name: parts["a"][name] for name in "abc"})
    with pytest.raises(UserError, match="unmasked is out of order"):
        one.session("a").unmask({})
    one.session("a").confirm(list(NAMES))
    with pytest.raises(UserError, match="survivors is out of order"):
        one.session("a").confirm(["a", "b", "c"])


def test_a_list_that_was_refused_is_not_used_by_a_later_step(group: Callable[..., Group]):
    one = group()
    cards = one.cards()
    bad = secure_sum.write_roll({name: cards[name] for name in "ab"}, 0)
    with pytest.raises(UserError, match="is too small"):
        one.session("a").shares(bad)
    with pytest.raises(UserError, match="sealed is out of order"):
        one.session("a").masked({"a": b"", "b": b""})


def test_lists_of_survivors_that_differ_between_clients_unmask_nothing(group: Callable[..., Group]):
    """With shares of one half by one list and of the other by another the server would have both secrets."""
    one = group()
    _, parts = rolled(one)
    for name in NAMES:
        one.session(name).masked(parts[name])
    first, second = ["a", "b", "c"], ["a", "b", "c", "d"]
    signatures = {name: one.session(name).confirm(first if name == "a" else second) for name in "abcd"}
    with pytest.raises(UserError, match="1 of 4 clients have signed the list"):
        one.session("a").unmask(signatures)
    assert set(one.session("b").unmask(signatures)) == set(NAMES)  # three have signed that one


def test_a_signature_that_is_missing_or_anothers_does_not_count(group: Callable[..., Group]):
    one = group()
    _, parts = rolled(one)
    for name in NAMES:
        one.session(name).masked(parts[name])
    signatures = {name: one.session(name).confirm(list(NAMES)) for name in NAMES}
    with pytest.raises(UserError, match="2 of 4 clients have signed"):
        one.session("a").unmask({"b": signatures["b"], "c": signatures["b"]})
    one.session("a").unmask({"b": signatures["b"], "c": signatures["c"]})


def test_a_client_gives_one_secret_of_each_other_never_both(group: Callable[..., Group]):
    one = group()
    _, parts = rolled(one)
    for name in NAMES:
        one.session(name).masked(parts[name])
    alive = ["a", "b", "c"]
    own = {name: one.session(name).own for name in NAMES}
    signatures = {name: one.session(name).confirm(alive) for name in alive}
    shares: dict[str, dict[int, bytes]] = {name: {} for name in NAMES}
    for place, name in enumerate(alive, start=1):
        for owner, share in one.session(name).unmask(signatures).items():
            assert len(share) == secure_sum.SHARE_BYTES
            shares[owner][place] = share
    for name in NAMES:
        secret = own[name].seed if name in alive else own[name].mask
        assert secure_sum.join(shares[name]) == secret


def test_a_round_made_again_has_the_same_clients_in_its_sum_or_none(group: Callable[..., Group]):
    """Updates are the same then, and the difference of two sums would be one client's."""
    one = group()
    one.lost = {("masked", "d")}
    one.total(one.cards())
    one.lost = set()
    with pytest.raises(
        UserError, match=r"round 1 already has a sum of a \(98\), b \(99\), c \(100\); one of"
    ):
        one.total(one.cards())
    cards = one.cards()
    _, survivors = one.total({name: cards[name] for name in "abc"})
    assert survivors == ["a", "b", "c"]


@pytest.mark.parametrize("cap", [1, 99])
def test_a_round_made_again_has_the_same_weights_in_its_sum_or_none(group: Callable[..., Group], cap: int):
    """Of two sums whose weights differ for one client a server could take that client's update."""
    one = group()
    one.total(one.cards())
    with pytest.raises(UserError, match=r"; one of a \("):
        one.total(one.cards(), cap=cap)
    assert one.total(one.cards(), cap=101)[1] == list(NAMES)  # n_d = 101: no weight is changed by that cap


def test_a_round_made_again_is_of_the_same_model_and_settings_or_none(group: Callable[..., Group]):
    """Settings of one client's training alone, or of clipping, could differ, and show its update."""
    one = group()
    one.total(one.cards())
    other = round_digest("run", 1, '{"more": 1}', SENT)
    with pytest.raises(UserError, match="another model or other settings"):
        one.total({name: one.begin(name, other) for name in NAMES}, other)


def test_shares_that_a_bad_client_made_up_cost_no_one_else_the_round(group: Callable[..., Group]):
    one = group()
    _, parts = rolled(one)
    one.session("a").masked(parts["a"] | {"b": bytes(148)})
    signatures = {"a": one.session("a").confirm(list(NAMES))}
    for name in "bcd":
        one.session(name).masked(parts[name])
        signatures[name] = one.session(name).confirm(list(NAMES))
    assert set(one.session("a").unmask(signatures)) == {"a", "c", "d"}


def test_the_sum_goes_on_without_shares_that_some_client_made_up(group: Callable[..., Group]):
    one = group()
    one.spoilt = {"d"}
    total, survivors = one.total(one.cards())
    assert (total == one.expected(survivors)).all()


def test_too_few_shares_of_a_client_that_others_can_decrypt_stop_the_sum_and_name_it(
    group: Callable[..., Group],
):
    one = group()
    one.spoilt = {"c", "d"}
    with pytest.raises(UserError, match="2 clients could decrypt a share of a, 3 are required"):
        one.total(one.cards())


def test_under_central_privacy_each_change_is_clipped_by_its_client_and_weighs_alike(
    group: Callable[..., Group],
):
    one = group()
    cards = {name: one.begin(name, most=0.5) for name in NAMES}
    total, _ = one.total(cards)
    bound = secure_sum.bound_of(0.5, 4)
    clipped = sum(0.5 * change / np.linalg.norm(change) for change in one.changes.values())
    assert np.allclose(secure_sum.decode(total, bound, 4), clipped, atol=1e-6)


def test_a_change_that_cannot_be_encoded_is_an_error_at_the_client(group: Callable[..., Group]):
    one = group()
    one.changes["a"][3] = 9.0
    with pytest.raises(Diverged, match="changed by 9"):
        one.begin("a")


def test_arrays_of_a_record_are_what_the_server_reads(group: Callable[..., Group]):
    from flwr.app import Array

    from fedsdr.server.secure import check_words

    one = group()
    _, parts = rolled(one)
    words = one.session("a").masked(parts["a"])
    assert (check_words(SIZE, RecordDict({"given": ArrayRecord({"values": Array(words)})})) == words).all()
