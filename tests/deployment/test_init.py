"""What `fedsdr deploy init` and `renew` write, and what they refuse."""

import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedsdr.deployment.certificates import renew
from fedsdr.deployment.init import init
from fedsdr.errors import UserError


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
    with pytest.raises(UserError, match=r"server.crt is missing or damaged: restore it"):
        renew(server)
    (server / "server.crt").unlink()
    with pytest.raises(UserError, match=r"server.crt is missing or damaged: restore it"):
        renew(server)
    with pytest.raises(UserError, match=r"did you mean .*all/server"):
        renew(tmp_path / "all")


@pytest.mark.parametrize(
    ("clients", "address", "told"),
    [
        (["bank", "bank"], "localhost:8443", "each client needs a unique name"),
        (["server"], "localhost:8443", "each client needs a unique name other than server"),
        ([], "localhost:8443", "set --clients"),
        (["../up"], "localhost:8443", "cannot name a folder"),
        (["mean"], "localhost:8443", "cannot be named 'mean'"),
        (["b\u0430nk"], "localhost:8443", "expected ASCII letters"),  # a Cyrillic letter
        (["bank-1", "bank-l"], "localhost:8443", "'bank-l' looks like 'bank-1'"),
        (["bank", "BANK"], "localhost:8443", "'BANK' looks like 'bank'"),
        (["bank"], "localhost:443", "the port must be 1024 or more"),
        (["bank"], "fl.example.org", "expected host:port"),
        (["bank"], "https://fl.example.org:443", "expected host:port"),
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
