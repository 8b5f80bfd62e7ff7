"""`fedsdr node`: a client's SuperNode and the worker that answers its messages, in one program."""

import errno
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import httpx
from pydantic import Field

from fedsdr.config import Data, Model
from fedsdr.data.sources import domain_files, load_domains
from fedsdr.deployment.certificates import check_authority, check_private
from fedsdr.deployment.superlink import end_with_parent, environment, split_address
from fedsdr.errors import Problems, UserError
from fedsdr.federation.node_config import Keys, NodeConfig, check_keys
from fedsdr.model.meta import load_skeleton
from fedsdr.progress import say
from fedsdr.storage import read_toml

PATIENCE = 120.0
"""Seconds during which a SuperNode that ends immediately is restarted. For a minute after a node was killed,
its server considers it connected, and rejects it."""
PAUSE = 10.0
REACHED = 10.0
"""Time limit in seconds for the server's answer when the way to it is checked."""
FREED = 20.0
"""Time limit in seconds for the SuperNode of a killed node to release its port."""


class NodeFile(Keys):
    """The file of a node."""

    superlink: Annotated[str, Field(examples=["fl.example.org:8443"])]
    """Address of the server, host:port."""
    root_certificates: Annotated[str, Field(examples=["ca.crt"])]
    """Certificate of the authority that signed the server's."""
    private_key: Annotated[str, Field(examples=["node.key"])]
    """This node's private key; the server registered its public half."""
    port: Annotated[int, Field(ge=1024, le=65535)]
    """Port of the SuperNode's Runtime API, on this machine only."""
    node: NodeConfig


def run_node(path: Path) -> None:
    """Connect a client to its server, and answer messages until the process is stopped.

    Raises:
        UserError: The file is malformed, a file that it names is missing, or the SuperNode ended.
    """
    file = read_node_file(path)
    _await_port(path, file.port)
    _report_missing_data(file.node)
    os.umask(0o077)  # its folder contains the client's texts
    os.environ |= environment()  # for this process too: the worker connects to the SuperNode
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, _stop)
    own = file.node.model_copy(update={"private_key": file.private_key})
    words = own.model_dump(by_alias=True, exclude_defaults=True)
    # JSON strings, numbers and booleans are valid TOML, which Flower reads.
    config = " ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in words.items())
    with tempfile.TemporaryDirectory() as place:
        secret, path_of_secret = secrets.token_bytes(32), Path(place) / "secret"
        path_of_secret.write_bytes(secret)  # only this user can read the folder
        arguments = [
            *("--superlink", file.superlink, "--root-certificates", file.root_certificates),
            *("--auth-supernode-private-key", file.private_key),
            *("--host", "127.0.0.1", "--port", str(file.port)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(path_of_secret)),
            *("--node-config", config),
        ]
        # -P: import nothing from the working directory.
        command = [sys.executable, "-P", "-m", "fedsdr.deployment.supernode"]
        say(f"client {file.node.client}: connecting to {file.superlink}")
        if reason := unreachable(file):
            say(f"client {file.node.client}: {reason}; trying again until it is reached")
        until = time.monotonic() + PATIENCE
        while True:
            begun = time.monotonic()
            status = _serve(command, arguments, f"127.0.0.1:{file.port}", secret)
            now = time.monotonic()
            if now - begun > PATIENCE:
                until = now + PATIENCE
            if now > until:
                raise UserError(
                    f"the SuperNode ended with status {status}; its messages are above. If the server is"
                    " reached but rejects the node, the node's key is not registered there"
                )
            say(
                "the SuperNode ended for the reason above, and is being restarted. If it was not activated,"
                " the server may consider it connected for another minute, or not know its key yet"
            )
            time.sleep(PAUSE)


def check_node(path: Path) -> list[str]:
    """Check what a client needs before it connects, apart from whether the server knows its key.

    Returns:
        Descriptions of its data, its model and its server.

    Raises:
        UserError: All that is wrong with the file, the data, the model or the way to the server.
    """
    file, found, problems = read_node_file(path), list[str](), Problems()
    node = file.node
    os.environ |= environment()
    with problems.gather():
        for name, domain in load_domains(Data(root=node.data)).items():
            found.append(f"domain {name}: {len(domain.train)} training, {len(domain.test)} test examples")
    with problems.gather():
        spec = Model(name=node.model, revision=node.revision, trust_remote_code=node.trust_remote_code)
        load_skeleton(spec)
        found.append(f"model: {node.model}")
    with problems.gather():
        if reason := unreachable(file):
            raise UserError(reason)
        found.append(f"server: {file.superlink}, certificate signed by {file.root_certificates}")
    problems.refuse()
    return found


def unreachable(file: NodeFile) -> str:
    """Why the server does not answer over TLS, by the site's proxy if there is one; "" if it does."""
    try:
        trusted = ssl.create_default_context(cafile=file.root_certificates)
        httpx.get(f"https://{file.superlink}/", verify=trusted, timeout=REACHED)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            reason += (
                f"; {file.root_certificates} is of another server, or a proxy on the way opens TLS and shows"
                " a certificate of its own"
            )
        return f"cannot reach superlink = {file.superlink}: {reason}"
    return ""


def _await_port(path: Path, port: int) -> None:
    """Wait until the port of the node's file is free.

    Raises:
        UserError: The port stays in use: another node with this file is running.
    """
    until = time.monotonic() + FREED
    while True:
        try:
            socket.create_server(("127.0.0.1", port)).close()
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise UserError(
                    f"{path}: port = {port} is not available ({error.strerror}): another `fedsdr node` with"
                    " this file uses it, or some other program"
                ) from None
        time.sleep(0.5)


def _report_missing_data(node: NodeConfig) -> None:
    """Report files missing from the data folder: they may be added before a run begins."""
    domains, lacking = domain_files(Path(node.data))
    if not domains or lacking:
        missing = ", ".join(map(str, lacking)) or f"<domain>/train.jsonl in {node.data}"
        say(f"client {node.client}: {missing} is missing: add the data before a run begins")


def _serve(command: list[str], arguments: Sequence[str], address: str, secret: bytes) -> int:
    """Run a SuperNode and answer its messages until it ends; return its status.

    Its arguments, which name the client's files, go through a pipe, because every user of the machine can
    read a command line.
    """
    from fedsdr.deployment.worker import work
    from fedsdr.federation.client_app import app

    # In its own session: Ctrl-C would reach it too, and a second signal prevents it from signing off.
    supernode = subprocess.Popen(
        command, stdin=subprocess.PIPE, preexec_fn=end_with_parent, start_new_session=True
    )
    assert supernode.stdin
    with supernode.stdin as pipe:
        pipe.write(json.dumps(arguments).encode())
    try:
        work(app, address, secret, lambda: supernode.poll() is None)
    finally:
        supernode.terminate()
        supernode.wait()
    return supernode.returncode


def read_node_file(path: Path) -> NodeFile:
    """Read a node's file, with paths made absolute.

    Raises:
        UserError: Names the key, the value and how to fix it.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; did you mean {path / 'node.toml'}?")
    file = check_keys(NodeFile, read_toml(path), str(path))
    here = path.resolve().parent
    node = file.node.within(here)
    authority, key = here / file.root_certificates, here / file.private_key
    for what, place in (("root-certificates", authority), ("private-key", key), ("node.data", node.data)):
        if not Path(place).exists():
            raise UserError(f"{path}: {what} = {place} does not exist")
    # Flower's own messages for these are unclear, and the SuperNode would be restarted repeatedly.
    split_address(file.superlink, f"{path}: superlink")
    check_authority(authority, f"{path}: root-certificates")
    check_private(key, f"{path}: private-key")
    own = {"root_certificates": str(authority), "private_key": str(key), "node": node}
    return file.model_copy(update=own)


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise SystemExit(0)
