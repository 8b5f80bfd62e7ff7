"""A SuperNode never leaves a client waiting: not for a message that was given up, nor as half a process."""

import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.logger import ConsoleHandler
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode.nodestate import NodeStateFactory

from fedsdr.deployment.supernode import UNFINISHED, Heartbeats, plain_log, receive_whole


@pytest.fixture
def receiving(flower_task: None) -> Callable[..., tuple[int | None, Any, int]]:
    """Let a SuperNode receive a message whose parts `pull` hands over; return its run, state, and parts kept."""
    store = ObjectStoreFactory()
    state = NodeStateFactory(objectstore_factory=store).state()
    state.set_node_id(1)
    state.store_run(Run.create_empty(run_id=1))

    def call(pull: Callable[[dict[str, bytes], str], bytes] | None) -> tuple[int | None, Any, int]:
        message = Message(RecordDict({"a": ArrayRecord()}), 1, "train")
        message.metadata.__dict__["_message_id"] = message.object_id
        parts = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
        run = receive_whole(
            state=state,
            object_store=store.store(),
            node_config={},
            receive=lambda: (message, get_object_tree(message)) if pull else None,
            get_run=None,
            get_fab=None,
            pull_object=lambda run_id, name: pull(parts, name) if pull else b"",
            confirm_message_received=lambda run_id, name: None,
            trusted_entities=None,
        )
        return run, state, len(store.store())

    return call


def test_a_message_whose_run_is_stopped_while_it_is_received_leaves_no_task(
    receiving: Callable[..., tuple[int | None, Any, int]],
):
    """Its worker would wait for an hour for parts that never come, and take up no other message."""

    def stopped(parts: dict[str, bytes], name: str) -> bytes:
        raise RunNotRunningException

    run, state, num_parts = receiving(stopped)
    assert run is None and not state.get_tasks(statuses=UNFINISHED) and num_parts == 0


def test_a_message_that_came_keeps_its_task_also_when_no_other_comes(
    receiving: Callable[..., tuple[int | None, Any, int]],
):
    run, state, num_parts = receiving(lambda parts, name: parts[name])
    assert run == 1 and len(state.get_tasks(statuses=UNFINISHED)) == 1 and num_parts
    assert receiving(None)[::2] == (None, num_parts)
    assert len(state.get_tasks(statuses=UNFINISHED)) == 1


def test_a_log_file_has_times_and_no_colours(monkeypatch: pytest.MonkeyPatch):
    handlers = [one for one in logging.getLogger("flwr").handlers if isinstance(one, ConsoleHandler)]
    for handler in handlers:
        monkeypatch.setattr(handler, "colored", True)
        monkeypatch.setattr(handler, "timestamps", False)
    plain_log()
    line = handlers[0].format(logging.makeLogRecord({"levelname": "INFO", "msg": "hello"}))
    assert re.fullmatch(r"INFO [\d: ,-]{19,}: +hello", line)


def test_a_heartbeat_that_is_answered_by_an_error_is_not_the_last():
    """The SuperLink's database may be locked, or its disk full, for a moment. Flower's thread dies of it."""
    is_heard, num = threading.Event(), [0]

    def beat() -> bool:
        num[0] += 1
        if num[0] == 1:
            request = httpx.Request("POST", "https://superlink")
            raise httpx.HTTPStatusError("", request=request, response=httpx.Response(500))
        is_heard.set()
        return True

    heartbeats = Heartbeats(beat)
    heartbeats.start()
    assert is_heard.wait(20)
    heartbeats.stop()


PROGRAM = """
import sys, threading, time
import flwr.supernode.cli as cli

def unknown():
    raise RuntimeError("The SuperLink does not recognize this SuperNode.")

def flower_supernode():
    assert sys.argv[1:] == ["--isolation", "process"]
    threading.Thread(target=time.sleep, args=(600,)).start()  # as the one that serves its workers
    {end}

cli.flower_supernode = flower_supernode
from fedsdr.deployment.supernode import Heartbeats, main
main()
"""


@pytest.mark.parametrize(
    ("end", "status", "told"),
    [
        ("return", 1, ""),  # as when a TLS handshake was broken off
        ("raise ValueError('of Flower')", 1, "ValueError: of Flower"),
        ("raise SystemExit(3)", 3, ""),
        # what a heartbeat raises where the server has forgotten the node
        ("Heartbeats(unknown).start(); time.sleep(600)", 1, "not recognize"),
    ],
)
def test_a_supernode_ends_with_its_main_thread(end: str, status: int, told: str):
    """`fedsdr node` can then restart it. Flower's own continues, and never answers its server again."""
    command = [sys.executable, "-c", PROGRAM.format(end=end)]
    done = subprocess.run(
        command, input='["--isolation", "process"]', capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status and told in done.stderr
