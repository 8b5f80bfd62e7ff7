"""Which keys the SuperLink accepts, and under which client's name."""

import base64
import hashlib
import json
import time
from pathlib import Path

from fedsdr.config import Settings
from fedsdr.data.sources import check_client
from fedsdr.deployment.certificates import read_public
from fedsdr.deployment.node import read_node_file
from fedsdr.deployment.superlink import CONNECTION, call_flower, require_server
from fedsdr.errors import UserError
from fedsdr.progress import say
from fedsdr.server.registry import registered
from fedsdr.storage import SECRET, write_file

STARTED = 30.0
"""Time limit in seconds for the SuperLink to start."""


def register(server: Path) -> None:
    """Register the nodes with public keys in the server's `keys/`, and no others.

    `keys/bank.pub` is the key of client bank, and no other key can use that name. Replaced keys, and keys of
    deleted files, are removed.

    Raises:
        UserError: Two files contain the same key; the SuperLink does not answer; or a file contains no key,
            or a rejected one: the others are then registered.
    """
    require_server(server)
    folder, paths, refused = server / "nodes", sorted(server.glob("keys/*.pub")), list[str]()
    keys = dict[Path, str]()
    for path in paths:
        check_client(path.stem, (other.stem for other in paths))
        if path.stem.endswith(".key"):
            raise UserError(f"{path}: rename it to <client>.pub: the file's name becomes the client's")
        try:
            keys[path] = read_public(path)
        except UserError as reason:  # its client keeps its previous key
            refused.append(str(reason))
    first: dict[str, Path] = {}
    for path, key in keys.items():
        if (same := first.setdefault(_body(key), path)) != path:
            raise UserError(f"{same} and {path} contain the same key: each client needs its own")
    folder.mkdir(mode=0o700, exist_ok=True)
    node_of = {_body(key): node for node, key in registered(str(folder)).values()}
    known = _known(server)
    for path, key in keys.items():
        is_known = node_of.get(_body(key)) in known
        if not is_known:
            try:
                words = (str(path.resolve()), CONNECTION, "--name", path.stem)
                node_of[_body(key)] = int(call_flower(server, "register", *words)["node-id"])
            except UserError as reason:
                again = (
                    "; it was registered before: its client must create a new key"
                    if "in use" in str(reason)
                    else ""
                )
                refused.append(f"{path}: {reason}{again}")
                continue
        saved = {"key": key, "node-id": node_of[_body(key)]}
        write_file(folder / f"{path.stem}.json", json.dumps(saved) + "\n", SECRET)
        say(f"{path.stem}: {'is registered' if is_known else 'may take part'}")
    for old in folder.glob("*.json"):
        if old.stem not in {path.stem for path in paths}:
            old.unlink()
            say(f"{old.stem}: is removed")
    # Last, so that anything registered before without a file is removed too.
    for node in sorted(_known(server) - {node for node, _ in registered(str(folder)).values()}):
        try:
            call_flower(server, "unregister", str(node), CONNECTION)
        except UserError as reason:
            refused.append(f"a key of no client: {reason}")
    if refused:
        raise UserError("\n".join(refused))
    if not paths:
        raise UserError(f"no client is admitted: put their keys into {server / 'keys'}, as <client>.pub")


def take_peers(file: Path, keys: Path) -> dict[str, str]:
    """Copy the public keys of the other clients into the folder `peers` of a node, for secure aggregation.

    A key in `peers` that is not in the folder given is removed: it counts as a client, and may be withdrawn.

    Args:
        file: The client's node.toml.
        keys: Folder with <client>.pub of each client, from the server's operator.

    Returns:
        Client -> fingerprint as `ssh-keygen -l` prints it. Clients compare them with each other, because the
        server could have substituted its own keys.

    Raises:
        UserError: The file sets no folder, a file contains no key, or two contain the same one.
    """
    node = read_node_file(file).node
    if not node.peers:
        raise UserError(f'{file}: add peers = "peers" under [node]: the keys of other clients go there')
    fingerprints: dict[str, str] = {}
    others: dict[str, str] = {}
    for path in sorted(keys.glob("*.pub")):
        key = read_public(path)
        check_client(path.stem, fingerprints)
        digest = hashlib.sha256(base64.b64decode(_body(key))).digest()
        fingerprint = f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"
        if fingerprint in fingerprints.values():
            raise UserError(f"{path}: another client in {keys} has this key: each client needs its own")
        fingerprints[path.stem] = fingerprint
        if path.stem != node.client:
            others[path.name] = key
    for name, key in others.items():
        write_file(Path(node.peers) / name, key)
    for old in sorted(Path(node.peers).glob("*.pub")):
        if old.name not in others:
            old.unlink()
            say(f"{old.stem}: is removed")
    return fingerprints


def status(server: Path) -> dict[str, str]:
    """Client -> what the SuperLink reports of its node ("online", "offline", "registered": never seen).

    Raises:
        UserError: The SuperLink does not answer.
    """
    require_server(server)
    nodes, statuses = _nodes(server), dict[str, str]()
    names = registered(str(server / "nodes"))
    for client in clients_of(server):
        node, _ = names.get(client, (-1, ""))
        statuses[client] = nodes.get(node, f"not admitted yet; run `fedsdr deploy register {server}`")
    return statuses


def clients_of(server: Path) -> list[str]:
    """Clients with a key that is registered, or that lies in `keys/`."""
    names = registered(str(server / "nodes"))
    return sorted(names.keys() | {path.stem for path in server.glob("keys/*.pub")})


def _body(key: str) -> str:
    """The essential part of a public key: its longest word; comments and line ends do not matter."""
    return max(key.split(), key=len, default="")


def _known(server: Path) -> set[int]:
    """Ids of the nodes known to the SuperLink, which may still be starting."""
    until = time.monotonic() + STARTED
    while True:
        try:
            return set(_nodes(server))
        except UserError:
            if time.monotonic() > until:
                raise


def _nodes(server: Path) -> dict[int, str]:
    """Node id -> status, for the nodes known to the SuperLink.

    Raises:
        UserError: The SuperLink does not answer.
    """
    start = server / "start.sh"
    if not (server / "state.db").exists():
        raise UserError(f"run {start} first: it has never been started")
    try:
        nodes = call_flower(server, "list", CONNECTION)["nodes"]
    except UserError as reason:
        raise UserError(f"{reason}; is {start} running?") from None
    return {int(node["node-id"]): node["status"] for node in nodes if node["status"] != "unregistered"}


def registry(server: Path, settings: Settings) -> str:
    """Folder with the ids of registered nodes, "" if there are no keys.

    Raises:
        UserError: Fewer keys are registered than clients that the run waits for.
    """
    folder = (server / "nodes").resolve()
    names, wanted = registered(str(folder)), settings.federation.num_clients
    clients = clients_of(server)
    if not clients:  # Flower without keys
        say("  no keys are registered: client names are not verified")
        return ""
    if len(names) < wanted:
        missing = "put the others there, then " * (len(clients) < wanted)
        raise UserError(
            f"federation.num_clients = {wanted}, but {len(names)} keys are registered"
            f" ({', '.join(names) or 'none'}), and {len(clients) - len(names)} more lie in"
            f" {server / 'keys'}: {missing}run `fedsdr deploy register {server}`"
        )
    return str(folder)
