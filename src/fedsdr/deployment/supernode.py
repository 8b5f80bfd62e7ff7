"""Flower's SuperNode with fixes for three faults that would leave a client waiting forever (as of 1.42).

If a run is stopped while its message is being received, Flower abandons the message but keeps its task, and
the worker waits for parts that never arrive. If an error ends the main thread, such as a TLS handshake broken
off by a restarting server, the thread for workers keeps the process alive. And if a heartbeat is answered
with an error, for example by a server whose disk is full, it is the last one: the server considers the node
gone and sends it no more messages.

Arguments come as JSON on standard input, because every user of the machine can read a command line.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import httpx
from flwr.common.constant import Status, SubStatus
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.logger import update_console_handler
from flwr.supercore.object_store import ObjectStore
from flwr.supernode import fleet_http_connection
from flwr.supernode import start_client_internal as flower
from flwr.supernode.cli import flower_supernode
from flwr.supernode.nodestate import NodeState

UNFINISHED = (Status.PENDING, Status.STARTING, Status.RUNNING)
pull_and_store = flower._pull_and_store_message


def receive_whole(*, state: NodeState, object_store: ObjectStore, **how: Any) -> int | None:
    """Receive a message like Flower; if Flower abandons it, end its task and drop its parts.

    Returns:
        Its run; None if no complete message arrived.
    """
    before = {task.task_id for task in state.get_tasks(statuses=UNFINISHED)}
    run = pull_and_store(state=state, object_store=object_store, **how)
    if run is None:
        for task in state.get_tasks(statuses=UNFINISHED):
            if task.task_id not in before:
                state.finish_task(task.task_id, SubStatus.FAILED, "its run was stopped")
                object_store.delete_objects_in_run(task.run_id)
    return run


class Heartbeats(HeartbeatSender):
    """Heartbeats that continue after an error, and end the process if the server no longer knows its node."""

    def __init__(self, beat: Callable[[], bool]) -> None:
        def heard() -> bool:
            try:
                return beat()
            except httpx.HTTPError:
                return False  # it is retried
            except RuntimeError:
                traceback.print_exc()
                _end(1)

        super().__init__(heard)


def plain_log() -> None:
    """Give Flower's log lines their time, and colours only on a terminal."""
    update_console_handler(timestamps=True, colored=sys.stderr.isatty())


def main() -> None:
    """Run a SuperNode by the arguments of `flower-supernode`, and end the process with it."""
    sys.argv += json.load(sys.stdin)
    plain_log()
    flower._pull_and_store_message = receive_whole  # type: ignore[assignment]
    fleet_http_connection.HeartbeatSender = Heartbeats  # type: ignore[misc, assignment]
    status = 1
    try:
        flower_supernode()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    _end(status)


def _end(status: int) -> NoReturn:
    """End the process regardless of its other threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
