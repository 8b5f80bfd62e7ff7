"""A server's folder and its SuperLink: the environment of Flower's programs, and calls of them."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsdr.errors import UserError

CONNECTION = "fedsdr"
"""Name of the connection in the server's Flower configuration."""
QUIET: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""Send no telemetry to Flower, and install nothing that an app asks for."""
PR_SET_PDEATHSIG = 1
HERE = "localhost,127.0.0.1"
"""Hosts reached without a site's proxy: SuperLink and workers run on one machine."""


def environment(**more: str) -> dict[str, str]:
    """Environment of Flower's programs."""
    direct = ",".join(filter(None, [HERE, *map(os.environ.get, ("NO_PROXY", "no_proxy"))]))
    return os.environ | QUIET | {"NO_PROXY": direct, "no_proxy": direct} | more


def call_flower(server: Path, *words: str) -> dict[str, Any]:
    """Call `flwr supernode` for the SuperLink of this folder; return its answer.

    Raises:
        UserError: The call failed.
    """
    command = [str(Path(sys.executable).with_name("flwr")), "supernode", *words, "--format", "json"]
    own = environment(FLWR_HOME=flower_home(server))
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False, umask=0o077)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        answer = {"success": False, "error-message": done.stdout + done.stderr}
    if not answer["success"]:
        raise UserError(f"flwr supernode {words[0]}: {' '.join(answer['error-message'].split())}")
    return answer


def split_address(address: str, what: str) -> tuple[str, int]:
    """Host and port of a server's address; `what` names it in the error."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"{what} = {address!r}: expected host:port, such as fl.example.org:8443")
    return host.strip("[]"), int(port)


def flower_home(server: Path) -> str:
    """FLWR_HOME of the SuperLink of this folder, as set by start.sh."""
    return str((server / "flower").resolve())


def require_server(server: Path) -> None:
    """Raise UserError if `init` did not write this folder."""
    if not (server / "start.sh").exists():
        inner = server / "server"
        meant = (
            f"did you mean {inner}?" if (inner / "start.sh").exists() else "`fedsdr deploy init` writes one"
        )
        raise UserError(f"{server} is not a server folder: {meant}")


def end_with_parent() -> None:
    """Let the system end this process with its parent, even after kill -9 (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
