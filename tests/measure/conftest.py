"""A judge that follows a known rule, behind a real server."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fedsdr.distill.remote import Judge

Rule = Callable[[str], str]


@pytest.fixture
def judge_by() -> Iterator[Callable[[Rule], tuple[Judge, list[str]]]]:
    """Return `judge_by(rule)`: a judge that answers a prompt by that rule, and the prompts it was asked."""
    started: list[ThreadingHTTPServer] = []

    def start(rule: Rule) -> tuple[Judge, list[str]]:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                (turn,) = body["messages"]
                asked.append(turn["content"])
                choice = {"finish_reason": "stop", "message": {"content": rule(turn["content"])}}
                reply = {"choices": [choice], "usage": {"completion_tokens": 1}}
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(reply).encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        started.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return Judge(f"http://127.0.0.1:{server.server_port}/v1", "rule", batch_size=4), asked

    yield start
    for server in started:
        server.shutdown()
        server.server_close()
