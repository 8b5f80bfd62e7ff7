"""A federation on this machine as organisations would run it: a SuperLink, and a process for each client."""

import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.faults.conftest import record

from fedsdr.config import Settings
from fedsdr.data.sources import BUILT_IN
from fedsdr.deployment.init import init
from fedsdr.deployment.superlink import environment
from fedsdr.recipe import dump_settings
from fedsdr.storage import read_lines, rewrite_lines

__all__ = ["record"]  # a fixture

CLIENTS = ("finance", "general", "math")
BIN = Path(sys.executable).parent
STARTED = 60.0
"""Seconds in which a program must have started."""


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder <domain>/{train,test}.jsonl with a few examples of three built-in domains."""
    return write_data(tmp_path_factory.mktemp("data"), CLIENTS)


def write_data(root: Path, domains: Sequence[str]) -> Path:
    for domain in domains:
        for file, num in (("train.jsonl", 6), ("test.jsonl", 2)):
            rewrite_lines(root / domain / file, read_lines(BUILT_IN / "domains" / domain / file)[:num])
    return root


def free_port() -> int:
    """A port p such that p, p + 1 and the ports of the nodes, p + 101 to p + 104, are free.

    Below those that the system itself gives to connections.
    """
    while True:
        port = random.SystemRandom().randrange(12_000, 32_000)
        try:
            for other in (port, port + 1, *range(port + 101, port + 105)):
                socket.create_server(("127.0.0.1", other)).close()
        except OSError:
            continue
        return port


UPLOAD = 8_000
"""Bytes. What is longer on its way up is an adapter; all other requests are shorter."""


class Recorder:
    """A relay that keeps all bytes that pass through it, in both directions, and may cut an upload off."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.seen: list[bytes] = []
        self.cut: Callable[[], None] | None = None
        """What to do once in the middle of an upload, of which nothing more is passed on."""
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            up = [0]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, sink, up), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, up: list[int]) -> None:
        """Pass on what comes; `up` has how many bytes went up on this connection since some came down."""
        peer = sink.getpeername()[1]
        try:
            while data := source.recv(4096):
                up[0] = up[0] + len(data) if peer == self.target else 0
                if up[0] > UPLOAD and (cut := self.cut):
                    self.cut = None
                    cut()
                    source.close()
                    sink.close()
                    return
                self.seen.append(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


class Deployment:
    """The programs of a federation."""

    def __init__(
        self,
        folder: Path,
        data_root: Path,
        model: Path,
        recording: Sequence[str] = (),
        clients: Sequence[str] = CLIENTS,
    ) -> None:
        self.clients = clients
        self.folder, self.programs = folder, dict[str, subprocess.Popen[bytes]]()
        self.orphans: list[psutil.Process] = []
        self.port = free_port()
        self.recorder = Recorder(self.port)
        init(folder, clients, f"localhost:{self.port}", str(model))
        for client in clients:
            shutil.copytree(data_root / client, folder / client / "data" / client)
            if client in recording:
                path = folder / client / "node.toml"
                relayed = path.read_text().replace(f":{self.port}", f":{self.recorder.port}")
                path.write_text(relayed)
        self.environment = environment(OMP_NUM_THREADS="1")

    @property
    def server(self) -> Path:
        return self.folder / "server"

    def start_server(self) -> None:
        self.start("server", [str(self.server / "start.sh")])
        self.wait_for_server()

    def register(self) -> None:
        subprocess.run([BIN / "fedsdr", "deploy", "register", self.server], env=self.environment, check=True)

    def start_node(self, client: str) -> None:
        environment = {"FLWR_HOME": str(self.folder / client / "flower")}
        self.start(client, [BIN / "fedsdr", "node", self.folder / client / "node.toml"], environment)

    def start_all(self) -> None:
        """The server, with all keys registered, and every client."""
        self.start_server()
        self.register()
        for client in self.clients:
            self.start_node(client)

    def kill(self, name: str) -> None:
        """Kill a program alone; its own programs stay."""
        program = self.programs.pop(name)
        self.orphans += psutil.Process(program.pid).children(recursive=True)
        program.send_signal(signal.SIGKILL)
        program.wait(30)

    def kill_orphans(self) -> None:
        for orphan in self.orphans:
            with suppress(psutil.NoSuchProcess):
                orphan.kill()

    def begin(self, settings: Settings) -> subprocess.Popen[str]:
        """Submit a run."""
        recipe = self.folder / "recipe.toml"
        recipe.write_text(dump_settings(settings))
        command = [BIN / "fedsdr", "run", recipe, "--on", self.server]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=self.environment, **pipes)  # type: ignore[call-overload,no-any-return]

    def run(self, settings: Settings, timeout: float = 300) -> str:
        """Submit a run, wait until it ends, and return what it said."""
        program = self.begin(settings)
        told, _ = program.communicate(timeout=timeout)
        assert program.returncode == 0, told + self.log("server")
        return told

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def stop(self) -> None:
        self.kill_orphans()
        for program in self.programs.values():
            program.terminate()
        for program in self.programs.values():
            try:
                program.wait(20)
            except subprocess.TimeoutExpired:
                program.kill()

    def start(self, name: str, command: list[Any], more: dict[str, str] | None = None) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.programs[name] = subprocess.Popen(
                command, env=self.environment | (more or {}), stdout=log, stderr=log
            )

    def wait_for_server(self) -> None:
        until = time.monotonic() + STARTED
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                assert self.programs["server"].poll() is None, self.log("server")
                assert time.monotonic() < until, f"the SuperLink did not start in {STARTED} s"
            time.sleep(0.2)


@pytest.fixture
def deployment(tmp_path: Path, data_root: Path, tiny_folder: Path) -> Iterator[Callable[..., Deployment]]:
    """Make a deployment of three clients; its programs end with the test."""
    made: list[Deployment] = []

    def make(**options: Any) -> Deployment:
        options = {"data_root": data_root} | options
        made.append(Deployment(tmp_path / f"deployment-{len(made)}", model=tiny_folder, **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def small(tiny_settings: Callable[..., Settings]) -> Callable[..., Settings]:
    """Settings of a run of two rounds by three clients."""

    def settings(**overrides: Any) -> Settings:
        return tiny_settings(
            **{
                "method": "fedsdr",
                "server.num_rounds": 2,
                "data.num_train": 0,
                "data.num_test": 0,
                "federation.num_clients": 3,
                "federation.wait": 60.0,
                "eval.max_new_tokens": 4,
                **overrides,
            }
        )

    return settings
