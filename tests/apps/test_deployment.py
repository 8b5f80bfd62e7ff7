"""What `fedsdr deploy init` writes, and what it and `fedsdr run --on` refuse."""

import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from fedsdr.apps import deployment as module
from fedsdr.apps.deployment import init, register, registered
from fedsdr.errors import UserError
from fedsdr.recipe import check_settings, dump_settings
from fedsdr.storage import write_json


def test_a_client_reaches_the_server_by_the_names_of_its_certificate_and_by_no_other(tmp_path: Path):
    server, client = init(tmp_path / "all", ["bank"], "fl.example.org:8443", "any")
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(server / "server.crt", server / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for _ in range(3):
                near, _ = listening.accept()
                try:
                    theirs.wrap_socket(near, server_side=True).close()
                except (ssl.SSLError, OSError):
                    near.close()

        threading.Thread(target=serve, daemon=True).start()
        own = ssl.create_default_context(cafile=str(client / "ca.crt"))
        for name, is_known in (("fl.example.org", True), ("localhost", True), ("other.example.org", False)):
            with socket.create_connection(listening.getsockname()) as far:
                try:
                    own.wrap_socket(far, server_hostname=name).close()
                    assert is_known
                except ssl.SSLCertVerificationError:
                    assert not is_known


def test_secrets_are_readable_by_their_owner_alone_and_scripts_are_scripts(tmp_path: Path):
    server, client = init(tmp_path / "all", ["bank"], "fl.example.org:8443", "any")
    for path in (server / "ca.key", server / "server.key", client / "node.key"):
        assert path.stat().st_mode & 0o77 == 0
    subprocess.run(["sh", "-n", server / "start.sh"], check=True)
    assert (server / "start.sh").stat().st_mode & 0o100
    assert (server / "keys/bank.pub").read_bytes() == (client / "node.key.pub").read_bytes()


@pytest.mark.parametrize(
    ("clients", "address", "told"),
    [
        (["bank", "bank"], "localhost:8443", "each client needs a name of its own"),
        (["server"], "localhost:8443", "each client needs a name of its own, and not server"),
        ([], "localhost:8443", "give --clients"),
        (["../up"], "localhost:8443", "cannot name a folder"),
        (["bank"], "fl.example.org", "expected host:port"),
        (["bank"], "fl.example.org:99999", "expected host:port"),
    ],
)
def test_what_cannot_be_a_federation_is_refused_before_anything_is_written(
    tmp_path: Path, clients: list[str], address: str, told: str
):
    with pytest.raises(UserError, match=told):
        init(tmp_path / "all", clients, address, "any")
    assert not (tmp_path / "all").exists()


def test_no_key_is_written_over(tmp_path: Path):
    init(tmp_path / "all", ["bank"], "localhost:8443", "any")
    with pytest.raises(UserError, match="is not empty"):
        init(tmp_path / "all", ["bank"], "localhost:8443", "any")


def test_a_run_that_would_wait_for_clients_whose_keys_are_not_registered_is_refused_at_once(tmp_path: Path):
    """Node ids of Flower are numbers of 64 bits; with no registration at all names are not bound."""
    settings = check_settings({"federation": {"num_clients": 2}}, "test")
    assert registered(tmp_path, settings) == {}
    write_json(tmp_path / "nodes/bank.json", {"key": "a", "node-id": 2**64 - 1})
    with pytest.raises(UserError, match=r"num_clients = 2, but 1 keys are registered \(bank\)"):
        registered(tmp_path, settings)
    write_json(tmp_path / "nodes/hospital.json", {"key": "b", "node-id": 7})
    assert registered(tmp_path, settings) == {"bank": 2**64 - 1, "hospital": 7}


@pytest.fixture
def superlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """What a SuperLink has registered: node id -> key. It takes each key once."""
    nodes: dict[int, str] = {}

    def flwr(server: Path, what: str, *words: str) -> dict[str, Any]:
        if what == "list":
            return {"nodes": [{"node-id": str(node), "status": "online"} for node in nodes]}
        if what == "unregister":
            del nodes[int(words[0])]
            return {}
        key = Path(words[0]).read_text()
        assert key not in nodes.values()
        nodes[2**63 + int(key)] = key
        return {"node-id": 2**63 + int(key)}

    monkeypatch.setattr(module, "_flwr", flwr)
    for number, name in enumerate(("bank", "hospital")):
        (tmp_path / "keys").mkdir(exist_ok=True)
        (tmp_path / f"keys/{name}.pub").write_text(str(number))
    return nodes


def test_a_name_is_bound_to_its_key_once_and_to_another_when_that_takes_its_place(
    tmp_path: Path, superlink: dict[int, str]
):
    settings = check_settings({"federation": {"num_clients": 2}}, "test")
    register(tmp_path)
    first = registered(tmp_path, settings)
    assert sorted(first.values()) == sorted(superlink) and list(first) == ["bank", "hospital"]
    assert (tmp_path / "nodes/bank.json").stat().st_mode & 0o77 == 0
    register(tmp_path)
    assert registered(tmp_path, settings) == first
    (tmp_path / "keys/bank.pub").write_text("50")
    register(tmp_path)
    second = registered(tmp_path, settings)
    assert second["bank"] != first["bank"] and second["hospital"] == first["hospital"]
    assert sorted(superlink) == sorted(second.values())  # the old key is taken off


def test_keys_are_registered_anew_with_a_superlink_that_has_forgotten_them(
    tmp_path: Path, superlink: dict[int, str]
):
    """Its database was removed."""
    register(tmp_path)
    superlink.clear()
    register(tmp_path)
    assert len(superlink) == 2


def test_ids_of_nodes_are_in_no_file_that_is_shown():
    """Who knows another's could answer in its place."""
    settings = check_settings({"federation": {"nodes": {"bank": 2**64 - 1}}}, "test")
    assert "bank" not in dump_settings(settings) and "bank" in settings.model_dump_json()
