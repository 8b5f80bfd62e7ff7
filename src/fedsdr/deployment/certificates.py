"""Certificates and keys of a deployment: its own authority, the server's certificate, node keys."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve

from fedsdr.deployment.superlink import require_server
from fedsdr.errors import UserError
from fedsdr.storage import SECRET, write_file

YEAR = timedelta(days=365)
AUTHORITY = "fedsdr authority of this deployment"
UNREADABLE = (ValueError, TypeError, NotImplementedError, UnsupportedAlgorithm, x509.InvalidVersion)
"""Exceptions of `cryptography` for a file without a readable key or certificate, or with a password."""


def make_authority(server: Path) -> None:
    """Write a certificate authority, valid for ten years: `ca.crt`, which clients trust, and `ca.key`."""
    key = _key()
    root = (
        _certificate(_name(AUTHORITY), key, 10 * YEAR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    write_file(server / "ca.crt", root.public_bytes(serialization.Encoding.PEM))
    write_file(server / "ca.key", _pem(key), SECRET)


def certify(server: Path, host: str) -> None:
    """Write the server's certificate for a year, signed by its authority: `server.crt`, `server.key`.

    Raises:
        UserError: The authority's key is missing.
    """
    if not (server / "ca.key").exists():
        raise UserError(f"{server / 'ca.key'} is missing: put the authority's key back to sign a certificate")
    authority = serialization.load_pem_private_key((server / "ca.key").read_bytes(), password=None)
    assert isinstance(authority, ec.EllipticCurvePrivateKey)
    key = _key()
    names = dict.fromkeys([host, "localhost", "127.0.0.1"])
    leaf = (
        _certificate(_name(host[:64]), key, YEAR)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False
        )
        .sign(authority, hashes.SHA384())
    )
    write_file(server / "server.crt", leaf.public_bytes(serialization.Encoding.PEM))
    write_file(server / "server.key", _pem(key), SECRET)


def renew(server: Path) -> datetime:
    """Renew the server's certificate for the same name; return its expiry date.

    Raises:
        UserError: The folder is not a server's, its certificate is missing or damaged, or as for `certify`.
    """
    require_server(server)
    path = server / "server.crt"
    try:
        old = x509.load_pem_x509_certificate(path.read_bytes())
    except (FileNotFoundError, *UNREADABLE):
        raise UserError(f"{path} is missing or damaged: restore it from a backup") from None
    names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    certify(server, str(next(iter(names)).value))
    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc


def node_key() -> tuple[bytes, bytes]:
    """A node's private and public key, as `ssh-keygen -t ecdsa -b 384` writes them."""
    key = _key()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public + b"\n"


def check_authority(path: Path, what: str) -> None:
    """Raise UserError if a file contains no certificate; `what` names it."""
    try:
        x509.load_pem_x509_certificates(path.read_bytes())
    except UNREADABLE:
        raise UserError(f"{what} = {path}: found no certificate; expected the server's ca.crt") from None


def check_private(path: Path, what: str) -> None:
    """Raise UserError if a file contains no node key that Flower accepts; `what` names it."""
    try:
        private = serialization.load_ssh_private_key(path.read_bytes(), None)
        if isinstance(private, ec.EllipticCurvePrivateKey) and uses_nist_ec_curve(private.public_key()):
            return
    except UNREADABLE:
        pass
    raise UserError(
        f'{what} = {path}: found no private key as made by `ssh-keygen -t ecdsa -b 384 -N "" -f {path.name}`'
    )


def read_public(path: Path) -> str:
    """Read a node's public key.

    Raises:
        UserError: The file contains none that Flower accepts.
    """
    text = path.read_bytes()
    try:
        key = serialization.load_ssh_public_key(text)
        if isinstance(key, ec.EllipticCurvePublicKey) and uses_nist_ec_curve(key):
            return text.decode()
    except UNREADABLE:
        pass
    hint = (
        "it contains a private key, which only its client may have: delete it; the client makes a new one"
        if b"PRIVATE KEY" in text
        else "expected the node.key.pub written by `ssh-keygen -t ecdsa -b 384`"
    )
    raise UserError(f"{path}: found no public key; {hint}")


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, valid: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_name(AUTHORITY))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + valid)
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
