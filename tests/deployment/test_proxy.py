"""The reverse proxy opens to clients what they need, and closes what Flower leaves open."""

import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.deployment.conftest import BIN, free_port
from tests.deployment.test_loopback import long

from fedsdr.config import Settings
from fedsdr.deployment.init import init
from fedsdr.deployment.superlink import environment
from fedsdr.recipe import dump_settings


@pytest.fixture
def nginx() -> str:
    """The program, or a skip where there is none."""
    found = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(found).exists():
        pytest.skip("nginx is not installed")
    return found


@long
def test_control_and_runtime_are_closed_and_fleet_is_passed_on(tmp_path: Path, nginx: str):
    """The SuperLink itself refuses anyone without a secret of its folder; from the network it is not even
    reachable.
    """
    public = free_port()
    init(tmp_path / "d", ["bank"], f"fl.example.org:{public}", "tiny")
    server = tmp_path / "d" / "server"
    superlink = subprocess.Popen([server / "start.sh"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    proxy = subprocess.Popen([nginx, "-p", server, "-c", "nginx.conf", "-g", "daemon off;"])
    trusted = ssl.create_default_context(cafile=str(server / "ca.crt"))

    def status(port: int, path: str) -> int:
        """As a client named by the certificate would see it."""
        lines = [
            f"POST {path} HTTP/1.1",
            "Host: fl.example.org",
            "Content-Length: 0",
            "Connection: close",
            "",
            "",
        ]
        plain = socket.create_connection(("127.0.0.1", port), timeout=10)
        with trusted.wrap_socket(plain, server_hostname="fl.example.org") as tls:
            tls.sendall("\r\n".join(lines).encode())
            return int(tls.recv(100).split()[1])

    try:
        until = time.monotonic() + 60
        while True:
            try:
                if status(public + 1, "/health") and status(public, "/"):
                    break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.3)
        for path in ("/v1/control/start-run", "/v1/runtime/acquire-task", "/health", "/", "/v1/fleetx"):
            assert status(public, path) == 403, path
        assert status(public + 1, "/v1/runtime/acquire-task") != 403  # this is what the proxy closes
        passed = status(public, "/v1/fleet/activate-node")
        assert passed == status(public + 1, "/v1/fleet/activate-node") and passed not in (403, 404, 502)
    finally:
        proxy.send_signal(signal.SIGQUIT)
        superlink.terminate()
        proxy.wait(20)
        superlink.wait(20)


@long
def test_two_organisations_follow_the_documents_steps_through_the_proxy(
    tmp_path: Path, nginx: str, data_root: Path, tiny_folder: Path, small: Callable[..., Settings]
):
    """Keys made by the clients themselves; on 127.0.0.2, which is not what a trial uses."""
    public, clients = free_port(), ("general", "math")
    recipe, own = tmp_path / "recipe.toml", environment(OMP_NUM_THREADS="1")
    recipe.write_text(dump_settings(small(**{"federation.num_clients": 2, "run.dir": "runs/first"})))

    def fedsdr(*words: object) -> str:
        command = [BIN / "fedsdr", *words]
        done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    address = ("--address", f"127.0.0.2:{public}", "--model", tiny_folder)
    fedsdr("deploy", "init", "federation", "--clients", ",".join(clients), *address)
    folder = tmp_path / "federation"
    server, programs = folder / "server", list[subprocess.Popen[bytes]]()

    def start(*command: object) -> None:
        with (tmp_path / "log").open("ab") as log:
            programs.append(subprocess.Popen(list(map(str, command)), env=own, stdout=log, stderr=log))

    for client in clients:
        key = folder / client / "node.key"
        make = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(key)]
        subprocess.run(make, check=True)
        shutil.copy(key.with_name("node.key.pub"), server / "keys" / f"{client}.pub")
        shutil.copytree(data_root / client, folder / client / "data" / client)
    try:
        start(server / "start.sh")
        start(nginx, "-p", server, "-c", "nginx.conf", "-g", "daemon off;")
        assert "math: may take part" in fedsdr("deploy", "register", server)
        assert "math: is registered" in fedsdr("deploy", "register", server)
        for client in clients:
            start(BIN / "fedsdr", "node", folder / client / "node.toml")
        fedsdr("run", recipe, "--on", server)
    finally:
        for program in programs:
            program.terminate()
        for program in programs:
            program.wait(30)
    assert (server / "runs/first/report.html").exists(), (tmp_path / "log").read_text()
