"""What organisations need to run a federation over Flower: certificates, keys, configurations, start scripts.

`init` writes a folder for the server and one for each client. Keys made here are for trials: between
organisations each makes its own and sends its public half (docs/deployment.md).
"""

import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsdr import __version__
from fedsdr.apps.certificates import certify, make_authority, node_key
from fedsdr.apps.checks import check_deployed
from fedsdr.config import Settings
from fedsdr.data.sources import check_name
from fedsdr.errors import UserError
from fedsdr.progress import say
from fedsdr.recipe import to_toml
from fedsdr.storage import SECRET, read_json, write_file

CONNECTION = "fedsdr"
"""Name of the connection in the server's Flower configuration."""
STARTED = 30.0
"""Seconds in which the SuperLink must have started."""
ENDED = "ended"
"""File in a run's folder: the token of the last submission, and on the next lines why it stopped early."""
OFFSET = 9000
"""Inner ports are above a privileged public one by so much."""
QUIET: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""Nothing is sent to Flower's makers, and nothing is installed at the word of a server."""
HERE = "localhost,127.0.0.1"
"""Reached without the proxy that a site may have: SuperLink and workers talk on one machine."""


def environment(**more: str) -> dict[str, str]:
    """Environment of Flower's programs."""
    beside = ",".join(filter(None, [HERE, *map(os.environ.get, ("NO_PROXY", "no_proxy"))]))
    return os.environ | QUIET | {"NO_PROXY": beside, "no_proxy": beside} | more


APP = f"""\
# What `flwr run` sends: no code, only the names of the apps that server and clients have installed.
[project]
name = "fedsdr-app"
version = "{__version__}"
description = "Federated instruction tuning with fedsdr"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedsdr"

[tool.flwr.app.components]
serverapp = "fedsdr.apps.flower_app:app"
clientapp = "fedsdr.apps.client_app:app"

[tool.flwr.app.config]
settings = ""
recipe = ""
overrides = ""
token = ""
"""

START = """\
#!/bin/sh
# Starts the SuperLink for this machine alone. nginx.conf opens to the clients what they need, and only that.
cd "$(dirname "$0")" && export FLWR_HOME="$PWD/flower" PATH={bin}:"$PATH" {environment}
export NO_PROXY="{here},$NO_PROXY,$no_proxy"   # of this machine's own talk
export no_proxy="$NO_PROXY" && umask 077   # database and log hold the ids of nodes, which are secret
mkdir -p flower && cat > flower/config.toml <<END   # where `flwr` finds it; it wants the whole path
[superlink]
default = "{connection}"
[superlink.{connection}]
address = "127.0.0.1:{port}"
root-certificates = "$PWD/ca.crt"
END
exec flower-superlink --host 127.0.0.1 --port {port} \\
  --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key \\
  --enable-supernode-auth --isolation subprocess --database state.db --log-file superlink.log
"""

NGINX = """\
# TLS for the clients, and nothing of Flower but what a client needs. Flower itself answers on its control and
# runtime paths to anyone who holds the CA certificate: they could submit code that runs at every client.
# Test it with: nginx -t -p . -c nginx.conf; start it with: nginx -p . -c nginx.conf
pid nginx.pid;
error_log nginx.log;
events {{}}
http {{
  access_log off;
  client_max_body_size 32m;   # Flower sends pieces of 5 MB, and reads a request before it asks who sends it
  limit_conn_zone $binary_remote_addr zone=addresses:1m;
  client_body_temp_path nginx-body;
  proxy_temp_path nginx-proxy;
  fastcgi_temp_path nginx-fastcgi;
  uwsgi_temp_path nginx-uwsgi;
  scgi_temp_path nginx-scgi;
  server {{
    listen {public} ssl;
    server_name {host};
    ssl_certificate server.crt;
    ssl_certificate_key server.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    location /v1/fleet/ {{
      limit_conn addresses 64;
      proxy_pass https://127.0.0.1:{port};
      proxy_ssl_trusted_certificate ca.crt;
      proxy_ssl_verify on;
      proxy_ssl_name localhost;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_request_buffering off;
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
    location / {{ return 403; }}
  }}
}}
"""

NODE = """\
# What this client's machine decides; no server can change it. Paths are taken from this file's folder.
superlink = {address}
root-certificates = "ca.crt"
private-key = "node.key"
port = {port}   # for the SuperNode's own use, on this machine alone

[node]
client = {client}
data = {data}   # holds <domain>/train.jsonl and <domain>/test.jsonl (docs/data.md)
folder = "state"   # rewritings, private adapters, evaluations: never leave it
model = {model}   # a built-in name, a folder, or a hub id; must be the server's
# threads = 0   # for computing; 0: as the server's settings say
# distill-url = ""   # an OpenAI-compatible server of yours that may see your data, for rewriting
# served-name = ""   # and the model there
# run-programs = false   # whether programs that the model writes may be run, to score examples with tests
# most-epsilon = 0.0   # above 0: take part only under local differential privacy, until its cost is this
# delta = 1e-5   # at this delta
# trust-remote-code = false
# keep-updates = false   # whether a server that says so may keep what this client sends, round by round
"""


def init(folder: Path, clients: Sequence[str], address: str, model: str) -> list[Path]:
    """Write what a server and its clients need.

    Keys of clients are written for a trial on this machine only: otherwise each client makes its own.

    Args:
        folder: Becomes `server/` and one folder for each client.
        clients: Their ids.
        address: Where clients reach the server, host:port.
        model: Base model of all.

    Returns:
        The folders: the server's, then the clients'.

    Raises:
        UserError: The folder is not empty, or a name or the address is not fit.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a folder that does not exist yet")
    for number, client in enumerate(clients):
        check_name(client, "client")
        if client == "server" or client in clients[:number]:
            raise UserError(f"client {client!r}: each client needs a name of its own, and not server")
    if not clients:
        raise UserError("no client is named: give --clients bank,hospital")
    host, public = _split(address)
    # On this machine alone there is no proxy, and clients reach the SuperLink itself.
    is_trial = is_local(address)
    if is_trial and public < 1024:
        raise UserError(f"--address = {address!r}: on this machine alone the port must be 1024 or more")
    inner = public if public >= 1024 else public + OFFSET
    port = inner if is_trial else inner + 1
    server = folder / "server"
    make_authority(server)
    certify(server, host)
    scripts = {"bin": shlex.quote(str(Path(sys.executable).parent)), "connection": CONNECTION, "port": port}
    scripts["environment"] = " ".join(f"{key}={value}" for key, value in QUIET.items())
    write_file(server / "start.sh", START.format(here=HERE, **scripts), 0o777)
    (server / "keys").mkdir()
    if not is_trial:
        write_file(server / "nginx.conf", NGINX.format(public=public, port=port, host=host))
    for number, client in enumerate(clients, start=1):
        place = folder / client
        write_file(place / "ca.crt", (server / "ca.crt").read_bytes())
        if is_trial:
            private, opened = node_key()
            write_file(place / "node.key", private, SECRET)
            write_file(server / "keys" / f"{client}.pub", opened)
        values = {"address": address, "client": client, "data": "data", "model": model}
        shown = {key: to_toml(value) for key, value in values.items()}
        write_file(place / "node.toml", NODE.format(port=inner + 100 + number, **shown))
    return [server, *(folder / client for client in clients)]


def submit(server: Path, settings: Settings) -> Path:
    """Start a run on the deployment whose server folder this is, and show its log until it ends.

    Returns:
        The run's folder.

    Raises:
        UserError: The folder is none that `init` wrote, as `check_deployed`, or the run did not come to its
            end.
    """
    _demand_server(server)
    check_deployed(settings)
    place = Path(settings.run.dir)
    place = place if place.is_absolute() else (server / place).resolve()
    nodes = registry(server, settings)
    settings = settings.model_copy(
        update={
            "run": settings.run.model_copy(update={"dir": str(place)}),
            "federation": settings.federation.model_copy(update={"nodes": nodes}),
        }
    )
    write_file(server / "app" / "pyproject.toml", APP)
    token = secrets.token_hex(8)
    words = {"settings": settings.model_dump_json(), "token": token}
    home = _home(server)
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:  # its name is a submission's own
            config.write("".join(f"{key} = {to_toml(value)}\n" for key, value in words.items()))
            config.flush()
            command = [str(Path(sys.executable).with_name("flwr")), "run", "app", CONNECTION, "--stream"]
            command += ["--run-config", config.name]
            own = environment(FLWR_HOME=home)
            # Its log is no result: standard output is for that.
            subprocess.run(command, cwd=server, env=own, stdout=sys.stderr, check=False)
    except KeyboardInterrupt:
        say(f"  the run goes on at the server; to see or stop it: FLWR_HOME={home} flwr list, log or stop")
        raise
    ended = place / ENDED
    whose, _, reason = (ended.read_text() if ended.exists() else "").partition("\n")
    if whose != token:
        raise UserError(
            "the run did not come to its end; why is said above. Where the SuperLink was not reached, start"
            f" {server / 'start.sh'}; where nothing is wrong, give the same command again to go on"
        )
    if reason:
        raise UserError(f"the run did not come to its end: {reason}")
    return place


def register(server: Path) -> None:
    """Let the nodes take part whose public keys lie in the server's `keys/`, and only these.

    `keys/bank.pub` is the key of client bank, and no other key can take that name. A key that it replaces,
    and those of names that are gone, are taken off.

    Raises:
        UserError: Two files hold one key; the SuperLink does not answer; or it does not take a key: the
            others are registered then.
    """
    _demand_server(server)
    folder, paths, refused = server / "nodes", sorted(server.glob("keys/*.pub")), list[str]()
    for path in paths:
        check_name(path.stem, "client")
        if path.stem.endswith(".key"):
            raise UserError(f"{path}: call it <client>.pub: the file's name becomes the client's")
    keys = {path: path.read_text() for path in paths}
    first: dict[str, Path] = {}
    for path, key in keys.items():
        if (same := first.setdefault(_body(key), path)) != path:
            raise UserError(f"{same} and {path} hold one key: each client needs its own")
    node_of = {_body(key): node for node, key in registered(str(folder)).values()}
    known = _known(server)
    for path, key in keys.items():
        is_known = node_of.get(_body(key)) in known
        if not is_known:
            try:
                words = (str(path.resolve()), CONNECTION, "--name", path.stem)
                node_of[_body(key)] = int(_flwr(server, "register", *words)["node-id"])
            except UserError as reason:
                again = (
                    "; it was registered before: its client makes a new key"
                    if "in use" in str(reason)
                    else ""
                )
                refused.append(f"{path}: {reason}{again}")
                continue
        kept = {"key": key, "node-id": node_of[_body(key)]}
        write_file(folder / f"{path.stem}.json", json.dumps(kept) + "\n", SECRET)
        say(f"{path.stem}: {'is registered' if is_known else 'may take part'}")
    for old in folder.glob("*.json"):
        if old.stem not in {path.stem for path in paths}:
            old.unlink()
            say(f"{old.stem}: is taken off")
    # At last, so that whatever was let in before, and is in no file, is taken off too.
    for node in sorted(_known(server) - {node for node, _ in registered(str(folder)).values()}):
        try:
            _flwr(server, "unregister", str(node), CONNECTION)
        except UserError as reason:
            refused.append(f"a key that is no client's: {reason}")
    if refused:
        raise UserError("\n".join(refused))
    if not paths:
        raise UserError(f"no client may take part: put their keys into {server / 'keys'}, as <client>.pub")


def _body(key: str) -> str:
    """What makes a public key: its longest word. A comment or other line ends make no other key."""
    return max(key.split(), key=len, default="")


def _known(server: Path) -> set[int]:
    """Ids of the nodes that the SuperLink knows; it may be starting."""
    until = time.monotonic() + STARTED
    while True:
        try:
            nodes = _flwr(server, "list", CONNECTION)["nodes"]
            return {int(node["node-id"]) for node in nodes if node["status"] != "unregistered"}
        except UserError as reason:
            if time.monotonic() > until:
                raise UserError(f"{reason}; is {server / 'start.sh'} running?") from None


def registered(folder: str) -> dict[str, tuple[int, str]]:
    """Client -> id of the node that has its key, and the key; {} of no folder.

    Raises:
        UserError: A file there is none that `fedsdr deploy register` wrote.
    """
    nodes: dict[str, tuple[int, str]] = {}
    for path in sorted(Path(folder).glob("*.json")) if folder else ():
        try:
            kept = read_json(path)
        except FileNotFoundError:  # taken off this instant
            continue
        except UserError:  # said below, with what would do
            kept = None
        if not isinstance(kept, dict) or (type(kept.get("node-id")), type(kept.get("key"))) != (int, str):
            raise UserError(
                f"{path}: found no node-id and key, as `fedsdr deploy register` wrote them; restore the file"
                " from a backup, or delete it: its client must then make a new key"
            )
        nodes[path.stem] = kept["node-id"], kept["key"]
    return nodes


def registry(server: Path, settings: Settings) -> str:
    """Folder of the ids of registered nodes, "" where there are no keys.

    Raises:
        UserError: They are fewer than the run will wait for.
    """
    folder = (server / "nodes").resolve()
    names = registered(str(folder))
    if not names and not list(server.glob("keys/*.pub")):  # Flower without keys
        say("  no key is registered: clients are believed who they say they are")
        return ""
    if len(names) < settings.federation.num_clients:
        raise UserError(
            f"federation.num_clients = {settings.federation.num_clients}, but {len(names)} keys are"
            f" registered ({', '.join(names) or 'none'}): put the others into {server / 'keys'}, then"
            f" `fedsdr deploy register {server}`"
        )
    return str(folder)


def _flwr(server: Path, *words: str) -> dict[str, Any]:
    """Call `flwr supernode` for the SuperLink of that folder; return its answer.

    Raises:
        UserError: It failed.
    """
    command = [str(Path(sys.executable).with_name("flwr")), "supernode", *words, "--format", "json"]
    own = environment(FLWR_HOME=_home(server))
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        answer = {"success": False, "error-message": done.stdout + done.stderr}
    if not answer["success"]:
        raise UserError(f"flwr supernode {words[0]}: {' '.join(answer['error-message'].split())}")
    return answer


def _home(server: Path) -> str:
    """FLWR_HOME of the SuperLink of that folder, as start.sh sets it."""
    return str((server / "flower").resolve())


def _demand_server(server: Path) -> None:
    """Raise UserError if the folder is none that `init` wrote."""
    if not (server / "start.sh").exists():
        inner = server / "server"
        meant = (
            f"did you mean {inner}?" if (inner / "start.sh").exists() else "`fedsdr deploy init` writes one"
        )
        raise UserError(f"{server} is no server folder: {meant}")


def is_local(address: str) -> bool:
    """Whether clients reach a server on this machine alone."""
    return _split(address)[0] in ("localhost", "127.0.0.1")


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_000:
        raise UserError(f"--address = {address!r}: expected host:port, such as fl.example.org:8443")
    return host.strip("[]"), int(port)
