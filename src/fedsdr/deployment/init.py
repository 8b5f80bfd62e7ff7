"""What organisations need for a federation over Flower: certificates, keys, configurations, start scripts.

`init` writes a folder for the server and one for each client. Keys made here are for trials: between
organisations, each client makes its own key and sends the public half (docs/deployment.md).
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from fedsdr.data.sources import check_client
from fedsdr.deployment.certificates import certify, make_authority, node_key
from fedsdr.deployment.superlink import CONNECTION, HERE, QUIET, split_address
from fedsdr.errors import UserError
from fedsdr.storage import SECRET, write_file

OFFSET = 9000
"""Offset from a privileged public port to the internal one."""
START = """\
#!/bin/sh
# Starts the SuperLink for this machine only. nginx.conf opens to clients only what they need.
cd "$(dirname "$0")" && export FLWR_HOME="$PWD/flower" PATH={bin}:"$PATH" {environment}
export NO_PROXY="{here},$NO_PROXY,$no_proxy"   # of calls within this machine
export no_proxy="$NO_PROXY" && umask 077   # database and log hold the ids of nodes, which are secret
mkdir -p flower && cat > flower/config.toml <<END   # where `flwr` finds it; it wants the whole path
[superlink]
default = "{connection}"
[superlink.{connection}]
address = "127.0.0.1:{port}"
root-certificates = "$PWD/ca.crt"
END
exec python -P -m fedsdr.deployment.flower_superlink --host 127.0.0.1 --port {port} \\
  --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key \\
  --enable-supernode-auth --isolation process --database state.db --log-file superlink.log
"""

NGINX = """\
# TLS for the clients, and only the parts of Flower that clients need. The SuperLink protects its control and
# runtime paths by secrets of the server's folder; here they are closed as well.
# Test it with: nginx -t -p . -c nginx.conf; start it with: nginx -p . -c nginx.conf
pid nginx.pid;
error_log nginx.log;
events {{}}
http {{
  access_log off;
  client_max_body_size 32m;   # Flower sends chunks of 5 MB, and reads them before it authenticates the sender
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
# run-programs = false   # whether tests of examples, and programs that the model writes, may be run
# max-epsilon = 0.0   # above 0: take part only under local differential privacy, until its cost is this
# delta = 1e-5   # at this delta
peers = "peers"   # public keys of the other clients, for secure aggregation (`fedsdr deploy peers`)
# min-clients = 0   # above 0: take part only under secure aggregation, of so many clients or more
# trust-remote-code = false
# keep-updates = false   # whether the server's settings may keep what this client sends, round by round
"""


def init(folder: Path, clients: Sequence[str], address: str, model: str) -> list[Path]:
    """Write the folders of a server and its clients.

    Keys of clients are written for a trial on this machine only: otherwise each client makes its own.

    Args:
        folder: New parent of `server/` and of one folder for each client.
        clients: Their ids.
        address: Address of the server for clients, host:port.
        model: Base model of all clients.

    Returns:
        The folders: the server's, then the clients'.

    Raises:
        UserError: The folder is not empty, or a name or the address is not allowed.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; choose a new folder")
    for number, client in enumerate(clients):
        if client == "server" or client in clients[:number]:
            raise UserError(f"client {client!r}: each client needs a unique name other than server")
        check_client(client, clients[:number])
    if not clients:
        raise UserError("no clients are named: set --clients bank,hospital")
    host, public = split_address(address, "--address")
    # On a single machine there is no proxy, and clients connect to the SuperLink directly.
    is_trial = is_local(address)
    if is_trial and public < 1024:
        raise UserError(f"--address = {address!r}: on a single machine the port must be 1024 or more")
    if public + 101 + len(clients) > 2**16:
        raise UserError(f"--address = {address!r}: the port is too high: some ports above it are also used")
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
        shown = {
            key: json.dumps(value, ensure_ascii=False) for key, value in values.items()
        }  # valid TOML too
        write_file(place / "node.toml", NODE.format(port=inner + 100 + number, **shown))
    for public_key in server.glob("keys/*.pub"):
        for client in set(clients) - {public_key.stem}:
            write_file(folder / client / "peers" / public_key.name, public_key.read_bytes())
    return [server, *(folder / client for client in clients)]


def is_local(address: str) -> bool:
    """Whether only clients on this machine reach the server."""
    return split_address(address, "--address")[0] in ("localhost", "127.0.0.1")
