"""Waiting for replies from other machines: late, unreadable, refused, and by a clock that jumps."""

import time
from collections.abc import Callable, Iterable

import httpx
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError

from fedsdr.deployment import flower_grid as module
from fedsdr.deployment.flower_grid import ResilientGrid
from fedsdr.errors import UserError


class Inner:
    """Flower's grid: node n answers after so many seconds, None: with what cannot be read, "half": never wholly."""

    def __init__(self, **nodes: float | str | None) -> None:
        self.delays = {int(node.removeprefix("n")): delay for node, delay in nodes.items()}
        self.begun = time.monotonic()
        self.sent: dict[str, Message] = {}
        self.pulled: list[str] = []
        self.fails = 0
        """How often the SuperLink still answers by an error."""

    def get_node_ids(self) -> Iterable[int]:
        self.require_whole()
        return list(self.delays)

    def require_whole(self) -> None:
        if self.fails:
            self.fails -= 1
            request = httpx.Request("POST", "https://superlink")
            raise httpx.HTTPStatusError("500 of it", request=request, response=httpx.Response(500))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.require_whole()
        for message in messages:
            node = message.metadata.dst_node_id
            one = f"{message.metadata.group_id} to {node}" if node in self.delays else ""
            message.metadata.__dict__["_message_id"] = one
            self.sent[one] = message
            yield one

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for one in message_ids:
            self.pulled.append(one)
            message = self.sent[one]
            self.require_whole()
            delay = self.delays[message.metadata.dst_node_id]
            if delay is None:
                raise ValueError("not a message")
            if delay == "half":
                yield self.half(message)
            elif time.monotonic() - self.begun >= delay:
                yield Message(RecordDict({"c": ConfigRecord({"of": one})}), reply_to=message)

    def half(self, message: Message) -> Message:
        """Wait for the rest of a reply, as Flower does."""

        def unavailable(part: str) -> bytes:
            raise ObjectUnavailableError(part)

        with pytest.raises(ObjectPullError):
            module.http_grid.pull_objects(object_ids=["a"], pull_object_fn=unavailable)
        return Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "the upload was cut off"), reply_to=message)


@pytest.fixture
def ask(flower_task: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Message]]:
    """Ask nodes 1, 2 and 3 in a round; return the replies."""
    monkeypatch.setattr(module, "POLL", 0.001)

    def send(grid: ResilientGrid, server_round: int = 1, timeout: float = 0.1) -> list[Message]:
        messages = [Message(RecordDict(), node, "train", group_id=str(server_round)) for node in (1, 2, 3)]
        return list(grid.send_and_receive(messages, timeout=timeout))

    return send


def told(replies: list[Message]) -> list[str]:
    return ["error" if reply.has_error() else str(reply.content["c"]["of"]) for reply in replies]


def test_a_reply_that_does_not_come_in_time_is_not_waited_for_and_not_taken_in_the_next_round(ask):
    inner = Inner(n1=0, n2=0.15, n3=0)
    grid = ResilientGrid(inner)  # type: ignore[arg-type]
    begun = time.monotonic()
    assert told(ask(grid)) == ["1 to 1", "1 to 3"]
    assert 0.1 <= time.monotonic() - begun < 1
    time.sleep(0.1)  # the reply of round 1 is there by now
    assert sorted(told(ask(grid, 2))) == ["2 to 1", "2 to 2", "2 to 3"]


def test_replies_are_handed_over_as_they_come_and_no_one_is_asked_for_again(ask):
    inner = Inner(n1=0.05, n2=0.0, n3=0.02)
    assert told(ask(ResilientGrid(inner), timeout=5)) == ["1 to 2", "1 to 3", "1 to 1"]  # type: ignore[arg-type]
    assert inner.pulled[-1] == "1 to 1" and inner.pulled.count("1 to 2") == 1


@pytest.mark.timeout(60)
def test_a_reply_that_was_cut_off_is_waited_for_no_longer_than_others_and_costs_no_other(ask):
    """Flower waits for the rest by its own timeout, and meanwhile does not check for other replies."""
    begun = time.monotonic()
    grid = ResilientGrid(Inner(n1=0.5, n2="half", n3=0))  # type: ignore[arg-type]
    assert told(ask(grid, timeout=0.8)) == ["error", "1 to 3", "1 to 1"]
    assert time.monotonic() - begun < 5


def test_a_reply_that_cannot_be_read_is_an_error_of_its_sender_alone(ask):
    """Flower raises, and the replies of all others would be lost with it."""
    replies = ask(ResilientGrid(Inner(n1=0, n2=None, n3=0)))  # type: ignore[arg-type]
    assert told(replies) == ["1 to 1", "error", "1 to 3"]
    assert replies[1].metadata.reply_to_message_id == "1 to 2"
    assert "cannot be read (ValueError)" in replies[1].error.reason


def test_a_reply_that_the_superlink_fails_to_hand_over_is_asked_for_again(
    ask, monkeypatch: pytest.MonkeyPatch
):
    """Its database may be locked while others upload; the client has done its work."""
    inner = Inner(n1=0, n2=0, n3=0)
    push = inner.push_messages

    def push_and_fail(messages: Iterable[Message]) -> Iterable[str]:
        yield from push(messages)
        inner.fails = 2

    monkeypatch.setattr(inner, "push_messages", push_and_fail)
    assert sorted(told(ask(ResilientGrid(inner), timeout=5))) == ["1 to 1", "1 to 2", "1 to 3"]  # type: ignore[arg-type]


def test_a_superlink_that_fails_is_waited_for_a_while_and_then_named(ask, monkeypatch: pytest.MonkeyPatch):
    """`fedsdr run --on` ends with a user error; a traceback would not help."""
    inner = Inner(n1=0, n2=0, n3=0)
    grid, inner.fails = ResilientGrid(inner), 2  # type: ignore[arg-type]
    assert list(grid.get_node_ids()) == [1, 2, 3]
    inner.fails = 1
    with pytest.raises(UserError, match="does not accept messages: 500 of it; run again to resume"):
        ask(grid)
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    inner.fails = 10**9
    with pytest.raises(UserError, match="does not list the connected nodes: 500 of it"):
        grid.get_node_ids()


def test_nothing_is_kept_of_a_question_that_was_answered_or_given_up(ask):
    """It holds the adapter that was broadcast: with a slow client each round would leave one."""
    grid = ResilientGrid(Inner(n1=0, n2=9, n3=None))  # type: ignore[arg-type]
    ask(grid)
    assert grid.questions == {}


def test_a_message_that_flower_does_not_take_is_left_out(ask):
    assert told(ask(ResilientGrid(Inner(n1=0, n3=0)))) == ["1 to 1", "1 to 3"]  # type: ignore[arg-type]


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_waiting_does_not_heed_a_clock_that_jumps(ask, monkeypatch: pytest.MonkeyPatch, jump: float):
    """Flower's own waiting ends immediately, or never."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + (jump if time.monotonic() - begun > 0.02 else 0))
    begun = time.monotonic()
    assert told(ask(ResilientGrid(Inner(n1=0, n2=0.05, n3=9)))) == ["1 to 1", "1 to 2"]  # type: ignore[arg-type]
    assert 0.1 <= time.monotonic() - begun < 1
