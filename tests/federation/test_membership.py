"""Who is connected: clients that are late, come back, change, or are others than they say."""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedsdr.config import Server
from fedsdr.errors import UserError
from fedsdr.federation import membership as module
from fedsdr.federation.membership import Membership
from fedsdr.recipe import check_settings
from fedsdr.storage import Event, write_json


class Grid:
    """Nodes that come and go, each with what it answers when it is asked to prepare."""

    def __init__(self, **nodes: str) -> None:
        self.clients = {int(node.removeprefix("n")): client for node, client in nodes.items()}
        self.num_train, self.model, self.asked = 5, "m", list[int]()
        self.sent: list[dict[str, object]] = []
        self.replies: dict[str, Message] = {}
        self.lost: dict[int, int] = {}
        """Nodes whose first message is answered by Flower, with an error of that code."""
        self.slow: set[str] = set()
        """Messages that are still being worked on."""

    def get_node_ids(self) -> Iterable[int]:
        return list(self.clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            node = message.metadata.dst_node_id
            self.asked.append(node)
            self.sent.append(dict(message.content["config"]))
            message.metadata.__dict__["_message_id"] = f"to {node}"
            if node in self.lost:
                self.replies[f"to {node}"] = Message(Error(self.lost.pop(node)), reply_to=message)
                yield f"to {node}"
                continue
            client = ConfigRecord({"id": self.clients[node], "model": self.model})
            metrics = MetricRecord({"num_train": self.num_train, "num_test": 2, "seconds": 1.0})
            content = RecordDict({"client": client, "metrics": metrics})
            self.replies[f"to {node}"] = Message(content, reply_to=message)
            yield f"to {node}"

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies.pop(one) for one in message_ids if one in self.replies and one not in self.slow]


@pytest.fixture
def attend(flower_task: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Membership]:
    """Make a membership whose clock is quick: ``attend(grid, num=3, known={...})``."""
    monkeypatch.setattr(module, "POLL", 0.001)

    def make(
        grid: Grid,
        num: int = 2,
        known: dict[str, Event] | None = None,
        nodes: dict[str, int] | None = None,
        **more: float,
    ) -> Membership:
        for client, node in (nodes or {}).items():
            write_json(tmp_path / f"{client}.json", {"key": "", "node-id": node})
        place = str(tmp_path) if nodes else ""
        federation = {"num_clients": num, "wait": 0.05, "nodes": place, **more}
        settings = check_settings({"federation": federation}, "test").federation
        return Membership(grid, ConfigRecord({}), "m", settings, Server(quorum=0.5), known or {})  # type: ignore[arg-type]

    return make


def told(client: str, num_train: int = 5) -> Event:
    return {"event": "prepare", "round": 0, "client": client, "num_train": num_train, "num_test": 2}


def test_a_run_begins_when_all_are_there_and_each_prepares_once(attend):
    grid = Grid(n7="b", n3="a")
    one = attend(grid)
    one.wait_for_all()
    one.look()
    assert (one.roster, sorted(one.known), grid.asked) == ({7: "b", 3: "a"}, ["a", "b"], [3, 7])
    # Each can see before it rewrites that its own base model is another one.
    assert [config["model"] for config in grid.sent] == ["m", "m"]


def test_waiting_for_clients_ends_with_how_many_were_admitted(attend):
    told = r"1 of 2 clients were admitted in 0.05 s \(federation.wait.*: start the others, then run again$"
    with pytest.raises(UserError, match=told):
        attend(Grid(n7="b")).wait_for_all()


def test_clients_that_came_and_were_refused_are_not_to_be_started(attend):
    """It said that none had connected, and to start the others."""
    grid = Grid(n1="a", n2="b")
    grid.model = "another"
    told = r"0 of 2 clients were admitted in .*: fix what follows, then run again; a client is not admitted: "
    with pytest.raises(UserError, match=told):
        attend(grid).wait_for_all()
    del grid.clients[2]
    with pytest.raises(
        UserError, match="start the others, fix what follows, then run again; a client is not"
    ):
        attend(grid).wait_for_all()


def test_waiting_for_a_quorum_ends_and_says_that_nothing_is_lost(attend):
    grid = Grid(n1="a", n2="b")
    one = attend(grid)
    one.wait_for_all()
    del grid.clients[1]
    one.wait_for(["a", "b"], 1, 3)
    assert one.absent() == {"a"}
    with pytest.raises(UserError, match=r"round 3: 1 of 2 sampled clients .* Finished rounds are saved"):
        one.wait_for(["a", "b"], 2, 3)


def test_a_client_that_comes_back_on_a_new_node_is_the_same_client(attend):
    grid = Grid(n1="a", n2="b")
    one = attend(grid)
    one.wait_for_all()
    grid.clients = {2: "b", 9: "a"}
    one.look()
    assert one.roster == {2: "b", 9: "a"} and one.absent() == set()


def test_the_second_of_two_nodes_of_one_name_is_left_out(attend):
    with pytest.raises(UserError, match=r"1 of 2 clients .* two nodes claim to be client a"):
        attend(Grid(n1="a", n2="a")).wait_for_all()
    grid = Grid(n1="a", n2="b")
    one = attend(grid)
    one.wait_for_all()
    grid.clients[3] = "a"
    one.look()
    one.look()
    assert one.roster == {1: "a", 2: "b"}
    assert grid.asked.count(3) == 1  # it is not asked again and again


def test_no_node_can_take_the_name_that_another_key_is_registered_under(attend):
    """Not while that client is away, and not if it reports the same numbers of examples."""
    grid = Grid(n1="a", n2="b")
    one = attend(grid, nodes={"a": 1, "b": 2, "c": 3})
    one.wait_for_all()
    grid.clients = {3: "a", 2: "b"}
    one.look()
    assert one.absent() == {"a"} and "which is registered with another key" in one.reasons[3]
    grid.clients = {1: "a", 2: "b"}
    one.look()
    assert one.absent() == set()
    grid.clients = {1: "a", 2: "a"}  # at the start, too, it is left out and stops nothing
    with pytest.raises(
        UserError, match=r"1 of 2 clients .* it claims to be client a, which is registered with another key"
    ):
        attend(grid, nodes={"a": 1, "b": 2}).wait_for_all()


def test_a_node_that_is_not_registered_is_not_even_asked(attend, tmp_path: Path):
    """It would learn the settings. Registrations may change during a run."""
    grid = Grid(n1="a", n2="b", n3="b")
    one = attend(grid, nodes={"a": 1, "b": 2})
    one.wait_for_all()
    assert grid.asked == [1, 2]
    write_json(tmp_path / "b.json", {"key": "", "node-id": 3})
    one.look()
    one.look()
    assert one.roster == {1: "a", 3: "b"}


def test_a_client_that_cannot_prepare_is_named_where_its_key_is_known_and_may_be_mended(
    attend, monkeypatch: pytest.MonkeyPatch
):
    grid = Grid(n1="a")
    grid.model = "other"
    with pytest.raises(UserError, match=r"0 of 1 clients .* client a is not admitted: .* another base model"):
        attend(grid, 1, nodes={"a": 1}).wait_for_all()
    monkeypatch.setattr(module, "AGAIN", 0.02)
    threading.Timer(0.1, lambda: setattr(grid, "model", "m")).start()
    one = attend(grid, 1, nodes={"a": 1}, wait=5.0)
    one.wait_for_all()
    assert one.absent() == set()


def test_a_client_that_nobody_waits_for_cannot_hold_up_the_start(attend):
    grid = Grid(n1="a", n2="b", n3="c")
    grid.slow = {"to 3"}
    attend(grid, num=2).wait_for_all()


def test_a_node_that_is_restarted_while_it_prepares_is_asked_again_and_ends_no_run(attend):
    grid = Grid(n1="a", n2="b")
    grid.lost = {2: 5}  # Flower's NODE_UNAVAILABLE
    one = attend(grid)
    one.wait_for_all()
    assert one.absent() == set() and grid.asked.count(2) == 2


def test_waiting_for_a_client_that_prepares_for_ever_ends(attend):
    grid = Grid(n1="a", n2="b")
    grid.slow = {"to 2"}
    with pytest.raises(UserError, match=r"1 did not finish preparing in 0.2 s \(federation\.prepare\)"):
        attend(grid, prepare=0.2).wait_for_all()


def test_a_run_goes_on_without_a_client_that_prepares_where_the_others_are_a_quorum(attend):
    """It need not wait for hours; the client joins when it is ready."""
    grid = Grid(n1="a", n2="b")
    grid.slow = {"to 2"}
    one = attend(grid, known={"a": told("a"), "b": told("b")})
    one.wait_for_all()
    assert one.absent() == {"b"}


def test_a_stranger_is_not_let_in_once_the_run_has_begun(attend):
    grid = Grid(n1="a", n2="b")
    one = attend(grid)
    one.wait_for_all()
    grid.clients[3] = "c"
    one.look()
    assert "c" not in one.known and 3 not in one.roster


def test_a_stranger_or_a_changed_client_does_not_keep_a_run_from_going_on(attend):
    """Once any registered node could stop every resumption."""
    one = attend(Grid(n1="a", n2="b", n3="c"), num=2, known={"a": told("a"), "b": told("b")})
    one.wait_for_all()
    assert one.roster == {1: "a", 2: "b"}
    one = attend(Grid(n1="a", n2="b"), num=2, known={"a": told("a"), "b": told("b", 7)})
    one.wait_for_all()
    assert one.absent() == {"b"} and "num_train = 7, now 5" in one.reasons[2]


def test_a_client_that_prepares_slowly_delays_no_round_of_the_others(attend):
    """A round once waited for every new client, regardless of the quorum."""
    grid = Grid(n1="a", n2="b")
    one = attend(grid)
    one.wait_for_all()
    grid.clients = {2: "b", 9: "a"}
    grid.slow = {"to 9"}
    one.wait_for(["a", "b"], 1, 3)
    assert one.absent() == {"a"}
    grid.slow = set()
    one.wait_for(["a", "b"], 2, 4)
    assert one.absent() == set() and grid.asked.count(9) == 1


def test_time_does_not_run_while_a_client_prepares(attend):
    """Rewriting takes hours; `federation.wait` is for those who are not there."""
    grid = Grid(n1="a", n2="b")
    grid.slow = {"to 2"}
    threading.Timer(0.3, grid.slow.clear).start()
    one = attend(grid)  # waits for 0.05 seconds
    one.wait_for_all()
    assert one.absent() == set()


def test_a_node_that_was_refused_is_asked_again_after_a_while(attend, monkeypatch: pytest.MonkeyPatch):
    """It keeps its id after it is repaired and restarted."""
    monkeypatch.setattr(module, "AGAIN", 0.02)
    grid = Grid(n1="a")
    one = attend(grid, num=1, known={"a": told("a"), "b": told("b")})
    one.wait_for_all()
    grid.clients[2] = "b"
    grid.model = "other"
    one.look()
    assert one.absent() == {"b"}
    grid.model = "m"
    one.wait_for(["a", "b"], 2, 3)
    assert one.absent() == set()


def test_a_run_goes_on_with_a_quorum_of_its_clients(attend):
    one = attend(Grid(n1="a"), num=2, known={"a": told("a"), "b": told("b")})
    one.wait_for_all()
    assert one.absent() == {"b"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"num_train": 6}, "client a had num_train = 5, now 6"), ({"model": "other"}, "another base model")],
)
def test_why_clients_are_not_let_in_is_told_when_there_are_too_few(attend, change: dict, reason: str):
    grid = Grid(n1="a")
    vars(grid).update(change)
    with pytest.raises(UserError, match=f"0 of 1 clients .*{reason}"):
        attend(grid, num=1, known={"a": told("a")}).wait_for_all()
