"""What `fedsdr deploy init` writes, and what it and `fedsdr run --on` refuse."""

import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedsdr.apps import deployment as module
from fedsdr.apps.certificates import renew
from fedsdr.apps.deployment import init, register, registered, registry, submit
from fedsdr.errors import UserError
from fedsdr.recipe import check_settings
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
    server, client = init(tmp_path / "all", ["bank"], "localhost:8443", "any")
    for path in (server / "ca.key", server / "server.key", client / "node.key"):
        assert path.stat().st_mode & 0o77 == 0
    subprocess.run(["sh", "-n", server / "start.sh"], check=True)
    assert (server / "start.sh").stat().st_mode & 0o100
    private = serialization.load_ssh_private_key((client / "node.key").read_bytes(), None)
    public = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    assert (server / "keys/bank.pub").read_bytes().strip() == public


def test_between_organisations_no_client_has_a_key_that_another_has_seen(tmp_path: Path):
    server, client = init(tmp_path / "all", ["bank"], "fl.example.org:8443", "any")
    assert not list((server / "keys").iterdir())
    assert {path.name for path in client.iterdir()} == {"ca.crt", "node.toml"}


def test_a_privileged_public_port_has_inner_ones_that_anyone_may_use(tmp_path: Path):
    """443 is the one that a hospital's firewall lets out."""
    server, client = init(tmp_path / "all", ["bank"], "fl.example.org:443", "any")
    assert "listen 443 ssl" in (server / "nginx.conf").read_text()
    assert "--port 9444" in (server / "start.sh").read_text()
    assert "port = 9544" in (client / "node.toml").read_text()


def test_a_renewed_certificate_is_another_that_clients_trust_as_they_did_the_first(tmp_path: Path):
    server, client = init(tmp_path / "all", ["bank"], "fl.example.org:8443", "any")
    before, trusted = (server / "server.crt").read_bytes(), (client / "ca.crt").read_bytes()
    until = renew(server)
    new = x509.load_pem_x509_certificate((server / "server.crt").read_bytes())
    assert new.not_valid_after_utc == until and (server / "server.crt").read_bytes() != before
    new.verify_directly_issued_by(x509.load_pem_x509_certificate(trusted))
    names = new.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "fl.example.org" in names.get_values_for_type(x509.DNSName)
    (server / "ca.key").unlink()
    with pytest.raises(UserError, match="put the authority's key back"):
        renew(server)
    (server / "server.crt").write_text("torn")
    with pytest.raises(UserError, match=r"server.crt is damaged: restore it"):
        renew(server)


@pytest.mark.parametrize(
    ("clients", "address", "told"),
    [
        (["bank", "bank"], "localhost:8443", "each client needs a name of its own"),
        (["server"], "localhost:8443", "each client needs a name of its own, and not server"),
        ([], "localhost:8443", "give --clients"),
        (["../up"], "localhost:8443", "cannot name a folder"),
        (["bank"], "localhost:443", "the port must be 1024 or more"),
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
    assert registry(tmp_path, settings) == ""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/bank.pub").touch()
    with pytest.raises(UserError, match=r"0 keys are registered \(none\)"):  # not: names are believed
        registry(tmp_path, settings)
    write_json(tmp_path / "nodes/bank.json", {"key": "a", "node-id": 2**64 - 1})
    with pytest.raises(UserError, match=r"num_clients = 2, but 1 keys are registered \(bank\)"):
        registry(tmp_path, settings)
    write_json(tmp_path / "nodes/hospital.json", {"key": "b", "node-id": 7})
    assert registered(registry(tmp_path, settings)) == {"bank": (2**64 - 1, "a"), "hospital": (7, "b")}
    write_json(tmp_path / "nodes/hospital.json", ["b", 7])
    with pytest.raises(UserError, match=r"hospital\.json: found no node-id"):
        registry(tmp_path, settings)


@pytest.fixture
def superlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """What a SuperLink has registered: node id -> key. It takes each key once, and "bad" never."""
    nodes: dict[int, str] = {}
    seen = {"bad"}

    def flwr(server: Path, what: str, *words: str) -> dict[str, Any]:
        if what == "list":
            return {"nodes": [{"node-id": str(node), "status": "online"} for node in nodes]}
        if what == "unregister":
            del nodes[int(words[0])]
            return {}
        key = Path(words[0]).read_text()
        if key in seen:
            raise UserError("Public key already in use.")
        seen.add(key)
        nodes[2**63 + len(seen)] = key
        return {"node-id": 2**63 + len(seen)}

    monkeypatch.setattr(module, "_flwr", flwr)
    (tmp_path / "start.sh").touch()
    (tmp_path / "keys").mkdir()
    for number, name in enumerate(("bank", "hospital")):
        (tmp_path / f"keys/{name}.pub").write_text(str(number))
    return nodes


def names(tmp_path: Path) -> dict[str, int]:
    return {client: node for client, (node, _) in registered(str(tmp_path / "nodes")).items()}


def test_a_name_is_bound_to_its_key_once_and_to_another_when_that_takes_its_place(
    tmp_path: Path, superlink: dict[int, str]
):
    register(tmp_path)
    first = names(tmp_path)
    assert sorted(first.values()) == sorted(superlink) and list(first) == ["bank", "hospital"]
    assert (tmp_path / "nodes/bank.json").stat().st_mode & 0o77 == 0
    register(tmp_path)
    assert names(tmp_path) == first
    (tmp_path / "keys/bank.pub").write_text("50")
    register(tmp_path)
    second = names(tmp_path)
    assert second["bank"] != first["bank"] and second["hospital"] == first["hospital"]
    assert sorted(superlink) == sorted(second.values())  # the old key is taken off


def test_a_client_whose_key_is_removed_is_taken_off(tmp_path: Path, superlink: dict[int, str]):
    register(tmp_path)
    (tmp_path / "keys/bank.pub").unlink()
    register(tmp_path)
    assert list(names(tmp_path)) == ["hospital"] and list(superlink.values()) == ["1"]
    (tmp_path / "keys/hospital.pub").unlink()
    with pytest.raises(UserError, match="no client may take part: put their keys into"):
        register(tmp_path)
    assert not superlink


def test_a_key_under_another_name_is_not_lost(tmp_path: Path, superlink: dict[int, str]):
    """Flower takes each key once."""
    register(tmp_path)
    first = names(tmp_path)
    (tmp_path / "keys/bank.pub").rename(tmp_path / "keys/savings-bank.pub")
    register(tmp_path)
    assert names(tmp_path) == {"hospital": first["hospital"], "savings-bank": first["bank"]}
    assert sorted(superlink) == sorted(first.values())
    (tmp_path / "keys/My Bank.pub").write_text("60")
    with pytest.raises(UserError, match="cannot name a folder"):
        register(tmp_path)


def test_a_key_that_was_saved_again_is_the_same_key(tmp_path: Path, superlink: dict[int, str]):
    """With another comment, or other line ends, as mail programs make them. Flower would refuse it as in use."""
    for text in (
        "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTI= me@bank",
        "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTI=\r\n",
    ):
        (tmp_path / "keys/bank.pub").write_text(text)
        register(tmp_path)
        assert len(superlink) == 2
    assert names(tmp_path)["bank"] in superlink


def test_one_key_for_two_clients_is_refused_before_anything_is_done(
    tmp_path: Path, superlink: dict[int, str]
):
    (tmp_path / "keys/bank.pub").write_text("1 again")
    (tmp_path / "keys/hospital.pub").write_text("1 again\n")
    with pytest.raises(UserError, match=r"bank.pub and .*hospital.pub hold one key"):
        register(tmp_path)
    assert not superlink and not names(tmp_path)


def test_whatever_else_was_registered_is_taken_off(tmp_path: Path, superlink: dict[int, str]):
    """By hand, or by a call that was killed before it wrote down the id."""
    superlink[5] = "orphan"
    register(tmp_path)
    assert sorted(superlink) == sorted(names(tmp_path).values())


def test_a_key_that_is_refused_costs_neither_its_predecessor_nor_the_others(
    tmp_path: Path, superlink: dict[int, str]
):
    (tmp_path / "keys/hospital.pub").rename(tmp_path / "later")
    register(tmp_path)
    first = names(tmp_path)
    (tmp_path / "keys/bank.pub").write_text("bad")
    (tmp_path / "later").rename(tmp_path / "keys/hospital.pub")
    with pytest.raises(UserError, match=r"bank\.pub: Public key already in use"):
        register(tmp_path)
    assert names(tmp_path)["bank"] == first["bank"] in superlink
    assert "hospital" in names(tmp_path)


def test_a_damaged_file_of_a_key_is_named_before_any_key_is_taken_off(
    tmp_path: Path, superlink: dict[int, str]
):
    register(tmp_path)
    before = dict(superlink)
    for damaged in ('{"node-id": 7}', '{"node-'):
        (tmp_path / "nodes/bank.json").write_text(damaged)
        with pytest.raises(
            UserError, match=r"bank\.json: found no node-id and key.* from a backup, or delete"
        ):
            register(tmp_path)
    assert superlink == before


def test_a_key_whose_file_is_lost_is_told_to_be_in_use_and_what_would_do(
    tmp_path: Path, superlink: dict[int, str]
):
    register(tmp_path)
    (tmp_path / "nodes/bank.json").unlink()
    with pytest.raises(
        UserError, match=r"bank\.pub: Public key already in use\.; .* its client makes a new key"
    ):
        register(tmp_path)


def test_a_public_key_under_the_name_that_ssh_keygen_gave_it_is_no_clients(
    tmp_path: Path, superlink: dict[int, str]
):
    (tmp_path / "keys/node.key.pub").write_text("70")
    with pytest.raises(UserError, match=r"node\.key\.pub: call it <client>\.pub"):
        register(tmp_path)
    assert not superlink


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ("", None),
        ("\nround 2: 1 of 3 clients were connected", "did not come to its end: round 2: 1 of 3"),
        ("an older one", "is said above.*start.sh"),
    ],
)
def test_a_submission_tells_why_its_run_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str, told: str | None
):
    """Flower's log has it in the middle of a traceback."""
    server, *_ = init(tmp_path / "all", ["bank"], "localhost:8443", "any")
    write_json(server / "nodes/bank.json", {"key": "a", "node-id": 7})
    settings = check_settings({"federation": {"num_clients": 1}, "run": {"dir": "runs/x"}}, "test")
    run = server.resolve() / "runs/x"

    def flwr(*args: Any, **kwargs: Any) -> None:
        run.mkdir(parents=True)
        (run / "ended").write_text(left if told and not left.startswith("\n") else f"token{left}")

    monkeypatch.setattr(module.secrets, "token_hex", lambda size: "token")
    monkeypatch.setattr(module.subprocess, "run", flwr)
    if told is None:
        assert submit(server, settings) == run
    else:
        with pytest.raises(UserError, match=told):
            submit(server, settings)


def test_the_folder_above_the_servers_is_told_from_the_servers(tmp_path: Path):
    init(tmp_path / "all", ["bank"], "localhost:8443", "any")
    with pytest.raises(UserError, match=r"did you mean .*all/server"):
        register(tmp_path / "all")


def test_keys_are_registered_anew_with_a_superlink_that_has_forgotten_them(
    tmp_path: Path, superlink: dict[int, str], monkeypatch: pytest.MonkeyPatch
):
    """Its database was removed."""
    register(tmp_path)
    before = names(tmp_path)
    monkeypatch.setattr(module, "_known", lambda server: set())
    monkeypatch.setattr(module, "_flwr", lambda *words: {"node-id": 77})
    register(tmp_path)
    assert list(names(tmp_path).values()) == [77, 77] != list(before.values())


def test_the_proxy_of_a_site_is_not_asked_for_this_machine_and_its_other_exceptions_hold(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("no_proxy", ".intern")
    monkeypatch.delenv("NO_PROXY", raising=False)
    own = module.environment()
    assert own["NO_PROXY"] == own["no_proxy"] == "localhost,127.0.0.1,.intern"
