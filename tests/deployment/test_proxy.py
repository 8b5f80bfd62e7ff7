"""The reverse proxy opens to clients what they need, and closes what Flower leaves open."""

import shutil
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from tests.deployment.conftest import free_port
from tests.deployment.test_loopback import long

from fedsdr.apps.deployment import init


@long
def test_control_and_runtime_are_closed_and_fleet_is_passed_on(tmp_path: Path):
    """With the CA certificate alone Flower lets anyone submit code; through the proxy no one can."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(nginx).exists():
        pytest.skip("nginx is not installed")
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
