"""What organisations need to run a federation over Flower: certificates, keys, configurations, start scripts.

`init` writes a folder for the server and one for each client. Keys made here are for trials: between
organisations each makes its own and sends its public half (docs/deployment.md).
"""

import ipaddress
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsdr import __version__
from fedsdr.apps.checks import check_deployed
from fedsdr.apps.run import is_finished
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
VALID = timedelta(days=365)
QUIET: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""Nothing is sent to Flower's makers, and nothing is installed at the word of a server."""

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
"""

START = """\
#!/bin/sh
# Starts the SuperLink for this machine alone. nginx.conf opens to the clients what they need, and only that.
cd "$(dirname "$0")" && export FLWR_HOME="$PWD/flower" PATH={bin}:"$PATH" {environment}
mkdir -p flower && cat > flower/config.toml <<END   # where `flwr` finds it; it wants the whole path
[superlink]
default = "{connection}"
[superlink.{connection}]
address = "127.0.0.1:{port}"
root-certificates = "$PWD/ca.crt"
END
exec flower-superlink --host 127.0.0.1 --port {port} \\
  --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key \\
  --enable-supernode-auth --isolation subprocess --database state.db
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
  client_max_body_size 0;
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
    """Write what a server and its clients need for a trial.

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
    port = public if _is_local(host) else public + 1
    server = folder / "server"
    certificates(server, host)
    scripts = {"bin": shlex.quote(str(Path(sys.executable).parent)), "connection": CONNECTION, "port": port}
    scripts["environment"] = " ".join(f"{key}={value}" for key, value in QUIET.items())
    write_file(server / "start.sh", START.format(**scripts), 0o777)
    if port != public:
        write_file(server / "nginx.conf", NGINX.format(public=public, port=port, host=host))
    write_file(server / "app" / "pyproject.toml", APP)
    for number, client in enumerate(clients, start=1):
        place = folder / client
        write_file(place / "ca.crt", (server / "ca.crt").read_bytes())
        private, opened = node_key()
        write_file(place / "node.key", private, SECRET)
        write_file(place / "node.key.pub", opened)
        write_file(server / "keys" / f"{client}.pub", opened)
        values = {"address": address, "client": client, "data": "data", "model": model}
        shown = {key: to_toml(value) for key, value in values.items()}
        write_file(place / "node.toml", NODE.format(port=port + 100 + number, **shown))
    return [server, *(folder / client for client in clients)]


def submit(server: Path, settings: Settings) -> Path:
    """Start a run on the deployment whose server folder this is, and show its log until it ends.

    Returns:
        The run's folder.

    Raises:
        UserError: The folder is none that `init` wrote, as `check_deployed`, or the run did not come to its
            end.
    """
    if not (server / "app" / "pyproject.toml").exists():
        raise UserError(f"{server} is no server folder; `fedsdr deploy init FOLDER` writes one")
    check_deployed(settings)
    place = Path(settings.run.dir)
    place = place if place.is_absolute() else (server / place).resolve()
    federation = settings.federation
    if not federation.nodes:
        federation = federation.model_copy(update={"nodes": registered(server, settings)})
    run = settings.run.model_copy(update={"dir": str(place)})
    settings = settings.model_copy(update={"run": run, "federation": federation})
    write_file(server / "app" / "run.toml", f"settings = {to_toml(settings.model_dump_json())}\n")
    command = [str(Path(sys.executable).with_name("flwr")), "run", "app", CONNECTION, "--stream"]
    subprocess.run([*command, "--run-config", "app/run.toml"], cwd=server, env=_home(server), check=False)
    if not is_finished(settings):
        raise UserError("the run is not finished; why is said above. Give the same command again to go on")
    return place


def register(server: Path) -> None:
    """Let the nodes take part whose public keys lie in the server's `keys/`, and bind clients' names to keys.

    `keys/bank.pub` is the key of client bank, and no other key can take that name. The key that it replaces
    is taken off.

    Raises:
        UserError: The SuperLink does not answer, or does not take a key.
    """
    until = time.monotonic() + STARTED
    while True:
        try:
            nodes = _flwr(server, "list", CONNECTION)["nodes"]
            break
        except UserError:  # it may be starting
            if time.monotonic() > until:
                raise
    known = {int(node["node-id"]) for node in nodes if node["status"] != "unregistered"}
    for path in sorted(server.glob("keys/*.pub")):
        kept, key = server / "nodes" / f"{path.stem}.json", path.read_text()
        before = read_json(kept) if kept.exists() else {"key": "", "node-id": 0}
        if before["node-id"] in known:
            if before["key"] == key:
                say(f"{path.stem}: is registered")
                continue
            _flwr(server, "unregister", str(before["node-id"]), CONNECTION)
        node = _flwr(server, "register", str(path.resolve()), CONNECTION, "--name", path.stem)["node-id"]
        write_file(kept, json.dumps({"key": key, "node-id": int(node)}) + "\n", SECRET)
        say(f"{path.stem}: may take part")


def registered(server: Path, settings: Settings) -> dict[str, int]:
    """Client -> node id, of all that `register` has let in.

    Raises:
        UserError: They are fewer than the run will wait for.
    """
    nodes = {path.stem: int(read_json(path)["node-id"]) for path in sorted(server.glob("nodes/*.json"))}
    if not nodes:
        say(f"  no key is registered by `fedsdr deploy register {server}`: names of clients are believed")
    elif len(nodes) < settings.federation.num_clients:
        raise UserError(
            f"federation.num_clients = {settings.federation.num_clients}, but {len(nodes)} keys are"
            f" registered ({', '.join(nodes)}): put the others into {server / 'keys'}, then"
            f" `fedsdr deploy register {server}`"
        )
    return nodes


def _flwr(server: Path, *words: str) -> dict[str, Any]:
    """Call `flwr supernode` for the SuperLink of that folder; return its answer.

    Raises:
        UserError: It failed.
    """
    command = [str(Path(sys.executable).with_name("flwr")), "supernode", *words, "--format", "json"]
    done = subprocess.run(command, env=_home(server), capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        answer = {"success": False, "error-message": done.stdout + done.stderr}
    if not answer["success"]:
        why = " ".join(answer["error-message"].split())
        raise UserError(f"flwr supernode {words[0]} failed: {why}; is {server / 'start.sh'} running?")
    return answer


def _home(server: Path) -> dict[str, str]:
    """Environment of Flower's commands for the SuperLink of that folder."""
    return os.environ | QUIET | {"FLWR_HOME": str((server / "flower").resolve())}


def certificates(server: Path, host: str) -> None:
    """Write a certificate authority, and a certificate of the server signed by it, for a year."""
    authority, key = _key(), _key()
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedsdr trial authority")])
    root = (
        _certificate(issuer, issuer, authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(), critical=True)
        .sign(authority, hashes.SHA384())
    )
    names = dict.fromkeys([host, "localhost", "127.0.0.1"])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    leaf = (
        _certificate(subject, issuer, key)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority, hashes.SHA384())
    )
    write_file(server / "ca.crt", root.public_bytes(serialization.Encoding.PEM))
    write_file(server / "server.crt", leaf.public_bytes(serialization.Encoding.PEM))
    for name, private in (("ca.key", authority), ("server.key", key)):
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_file(server / name, pem, SECRET)


def node_key() -> tuple[bytes, bytes]:
    """A node's private and public key, as `ssh-keygen -t ecdsa -b 384` writes them."""
    key = _key()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public + b"\n"


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + VALID)
    )


def _usage() -> x509.KeyUsage:
    allowed = {"key_cert_sign", "crl_sign"}
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in allowed for name in names})


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_000:
        raise UserError(f"--address = {address!r}: expected host:port, such as fl.example.org:8443")
    return host.strip("[]"), int(port)


def _is_local(host: str) -> bool:
    return host in ("localhost", "127.0.0.1", "::1")
