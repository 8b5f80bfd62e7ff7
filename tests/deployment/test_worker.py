"""The worker of a SuperNode: its behaviour when the SuperNode starts late, or forgets a message."""

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from flwr.clientapp import ClientApp
from flwr.proto.runtime_pb2 import AcquireTaskResponse
from flwr.proto.task_pb2 import Task

from fedsdr.deployment import runtime as module
from fedsdr.deployment.worker import work

TASK = AcquireTaskResponse(task=Task(task_id=1), token="t")


class SuperNode(ThreadingHTTPServer):
    """Answers each call by what `answers` has for it, or refuses it as from one that is not known."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.server_bind()  # nobody else is given its port, though a connection is refused until it starts

    def start(self) -> None:
        self.server_activate()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: SuperNode

    def do_POST(self) -> None:
        call = self.path.rpartition("/")[2]
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(call)
        answer = self.server.answers.get(call)
        data = b"" if answer is None else answer.SerializeToString()
        self.send_response(401 if answer is None else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def supernode(monkeypatch: pytest.MonkeyPatch) -> Iterator[SuperNode]:
    monkeypatch.setattr(module, "POLL", 0.02)
    with SuperNode() as server:
        yield server
        server.shutdown()


def work_for(server: SuperNode, is_alive: Callable[[], object]) -> None:
    work(ClientApp(), f"127.0.0.1:{server.server_port}", b"secret", lambda: bool(is_alive()))


@pytest.mark.timeout(60)
def test_a_supernode_that_no_longer_knows_a_message_costs_that_message_and_not_the_worker(
    supernode: SuperNode, capsys: pytest.CaptureFixture[str]
):
    """As after the machine slept for a minute. Flower ends the process by a signal."""
    supernode.start()
    supernode.answers = {"acquire-task": TASK}
    work_for(supernode, lambda: supernode.asked.count("acquire-task") < 2)
    assert "a message is not answered: HTTPStatusError" in capsys.readouterr().err
    supernode.answers = {}  # nor does it know the worker, when the clock jumped
    work_for(supernode, lambda: len(supernode.asked) < 8)


@pytest.mark.timeout(60)
def test_a_supernode_that_starts_is_asked_as_soon_as_it_is_there(supernode: SuperNode):
    """Flower waits twice as long after each try, here from 3 s to 7 s, though the SuperNode is there after 4."""
    threading.Timer(4, supernode.start).start()
    begun = time.monotonic()
    work_for(supernode, lambda: not supernode.asked)
    assert 4 <= time.monotonic() - begun < 6
