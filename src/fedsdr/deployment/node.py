"""`fedsdr node`: a client's SuperNode and the worker that answers its messages, as one program."""

import ctypes
import errno
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

from pydantic import Field, ValidationError

from fedsdr.config import Section
from fedsdr.data.sources import domain_files
from fedsdr.deployment.certificates import check_authority, check_private
from fedsdr.deployment.superlink import environment, split_address
from fedsdr.errors import UserError
from fedsdr.federation.node_config import read_node
from fedsdr.progress import say

PR_SET_PDEATHSIG = 1
PATIENCE = 120.0
"""Seconds in which a SuperNode that ends at once is started again. For a minute after a node was killed its
server takes it for connected, and refuses it."""
PAUSE = 10.0
FREED = 20.0
"""Seconds in which the SuperNode of a node that was killed must have let go of its port."""
PATHS = ("data", "folder", "cache")


class NodeFile(Section):
    """The file of a node; keys are written with dashes."""

    superlink: str
    """Address of the server, host:port."""
    root_certificates: str
    """Certificate of the authority that signed the server's."""
    private_key: str
    """This node's key, whose public half the server registered."""
    port: Annotated[int, Field(ge=1024, le=65535)]
    """Of the SuperNode's Runtime API, on this machine alone."""
    node: dict[str, Any]
    """Node configuration (`apps.node`)."""


def run_node(path: Path) -> None:
    """Connect a client to its server, and answer until told to stop.

    Raises:
        UserError: The file is malformed, something that it names is missing, or the SuperNode ended.
    """
    file = read_node_file(path)
    _await_port(path, file.port)
    _tell_missing_data(file)
    os.umask(0o077)  # its folder holds the client's texts
    os.environ |= environment()  # of this process too: the worker talks to the SuperNode
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _stop)
    # JSON's strings, numbers and booleans are TOML's, which Flower reads.
    config = " ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in file.node.items())
    with tempfile.TemporaryDirectory() as place:
        secret, kept = secrets.token_bytes(32), Path(place) / "secret"
        kept.write_bytes(secret)  # the folder is this user's alone
        command = [
            # -P: nothing is imported from the folder that it is started in.
            *(sys.executable, "-P", "-m", "fedsdr.deployment.supernode", "--superlink", file.superlink),
            *("--root-certificates", file.root_certificates),
            *("--auth-supernode-private-key", file.private_key),
            *("--host", "127.0.0.1", "--port", str(file.port)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(kept)),
            *("--node-config", config),
        ]
        say(f"client {file.node['client']}: connecting to {file.superlink}")
        until = time.monotonic() + PATIENCE
        while True:
            begun = time.monotonic()
            status = _serve(command, f"127.0.0.1:{file.port}", secret)
            now = time.monotonic()
            if now - begun > PATIENCE:
                until = now + PATIENCE
            if now > until:
                raise UserError(
                    f"the SuperNode ended with status {status}; its messages are above. A server that is"
                    " reached and does not let it in does not know its key: it must be registered there"
                )
            say(
                "the SuperNode ended, why is said above, and is started again. If it was not activated: the"
                " server may hold it for connected still, which passes in a minute, or not know its key yet"
            )
            time.sleep(PAUSE)


def _await_port(path: Path, port: int) -> None:
    """Wait until the port of the node's file is free.

    Raises:
        UserError: It stays in use: another node of this file is running.
    """
    until = time.monotonic() + FREED
    while True:
        try:
            socket.create_server(("127.0.0.1", port)).close()
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise UserError(
                    f"{path}: port = {port} cannot be had ({error.strerror}): another `fedsdr node` of"
                    " this file has it, or some other program"
                ) from None
        time.sleep(0.5)


def _tell_missing_data(file: NodeFile) -> None:
    """Say what the data folder lacks: it may come before a run begins."""
    domains, lacking = domain_files(Path(file.node["data"]))
    if not domains or lacking:
        missing = ", ".join(map(str, lacking)) or f"<domain>/train.jsonl in {file.node['data']}"
        say(f"client {file.node['client']}: there is no {missing}: put the data there before a run begins")


def _serve(command: list[str], address: str, secret: bytes) -> int:
    """Run a SuperNode and answer its messages until it ends; return its status."""
    from fedsdr.deployment.worker import work
    from fedsdr.federation.client_app import app

    # In a session of its own: Ctrl-C would reach it too, and it must be told once, to sign off at its server.
    supernode = subprocess.Popen(command, preexec_fn=_end_with_parent, start_new_session=True)
    try:
        work(app, address, secret, lambda: supernode.poll() is None)
    finally:
        supernode.terminate()
        supernode.wait()
    return supernode.returncode


def read_node_file(path: Path) -> NodeFile:
    """Read a node's file; paths in it become absolute.

    Raises:
        UserError: Names the key, the value and what would do.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        file = NodeFile.model_validate({key.replace("-", "_"): value for key, value in values.items()})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        # What is misspelt tells more than that the right word is missing.
        problem = max(error.errors(), key=lambda one: one["type"] == "extra_forbidden")
        key = str(problem["loc"][0]).replace("_", "-")
        value = "" if problem["type"] == "missing" else f" = {problem['input']!r}"
        raise UserError(f"{path}: {key}{value}: {problem['msg'].lower()}") from None
    here = path.resolve().parent
    read_node(file.node, here, "run")  # whose keys and types hold from here on
    node = file.node | {key: str(here / file.node[key]) for key in PATHS if file.node.get(key)}
    if (here / node["model"]).is_dir():
        node["model"] = str(here / node["model"])
    keys = {key: str(here / getattr(file, key)) for key in ("root_certificates", "private_key")}
    for what, place in {**keys, "node.data": node["data"]}.items():
        if not Path(place).exists():
            raise UserError(f"{path}: {what.replace('_', '-')} = {place} does not exist")
    # Refused here is what no server would let in, whatever is tried: Flower's own words tell little of it.
    split_address(file.superlink, f"{path}: superlink")
    check_authority(Path(keys["root_certificates"]), f"{path}: root-certificates")
    check_private(Path(keys["private_key"]), f"{path}: private-key")
    return file.model_copy(update={**keys, "node": node})


def _end_with_parent() -> None:
    """Let the system end this process with the one that began it, also after kill -9 (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise SystemExit(0)
