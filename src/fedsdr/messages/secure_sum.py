"""Secure aggregation: the server learns the sum of the clients' vectors, but no individual vector.

Client k holds x_k in the ring of integers modulo 2^32, a secret seed b_k, and a secret s_kj shared with each
other client j. It sends

    y_k = x_k + PRG(b_k) + sum over j > k of PRG(s_kj) - sum over j < k of PRG(s_kj)

In the sum over all clients the pairwise masks cancel. The rest is removed through Shamir shares. Each client
has shared b_k and the private key behind its s_kj among all clients, so that any t of them can reconstruct
one of the two: b_k for a client whose y_k is in the sum, the key for one that dropped out. Never both, or the
server would learn x_k. The protocol runs in `server.secure` and `client.secure`; this file has the stateless
functions.

X25519, HKDF-SHA256, ChaCha20 and ChaCha20-Poly1305 come from `cryptography`.

Papers: Bonawitz et al., CCS 2017 (the protocol, against a malicious server: t > 2 n / 3, and a round in which
clients sign who is in the sum); Shamir 1979. Differs: training precedes the key exchange, so that a dropout
can only happen within seconds, and the signature also covers the round and the broadcast.
"""

import hashlib
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

Words = NDArray[np.uint32]
"""Ring elements; sums wrap around."""
Float64 = NDArray[np.float64]

BYTES = 32
"""Length of a secret: a seed or a key."""
PRIME = 2**521 - 1
"""Order of the field of Shamir's shares, above any secret."""
SHARE_BYTES = 66
RANGE = 2**30
"""Largest absolute value of a sum of encoded vectors, before rounding; half the range of the ring."""
LARGEST = 8.0
"""Largest change of a parameter in a round that can be encoded in a weighted mean."""
LEAST_CLIENTS = 3
"""In a sum of two, each client could compute the other's vector."""


@dataclass(frozen=True)
class Secrets:
    """The secrets that a client draws for each round."""

    mask: bytes
    """X25519 private key of its pairwise masks."""
    seal: bytes
    """X25519 private key used to encrypt the shares sent to it."""
    seed: bytes
    """b_k."""


def draw_secrets() -> Secrets:
    """New secrets from the system's cryptographic source."""
    return Secrets(*(secrets.token_bytes(BYTES) for _ in range(3)))


def public(private: bytes) -> bytes:
    """Public half of an X25519 key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def is_usable(key: bytes) -> bool:
    """Whether keys can be exchanged with an X25519 public key; with points of low order they cannot."""
    try:
        _agree(draw_secrets().mask, key, b"")
    except ValueError:
        return False
    return True


def has_signed(node_key: bytes, signature: bytes, text: bytes) -> bool:
    """Whether the owner of a node's public key, in OpenSSH's format, made a signature."""
    key = serialization.load_ssh_public_key(node_key)
    assert isinstance(key, EllipticCurvePublicKey)
    with suppress(InvalidSignature):
        key.verify(signature, text, ECDSA(SHA384()))
        return True
    return False


def threshold(num: int) -> int:
    """t: number of clients that reconstruct a secret. Two such sets share more than a third of all."""
    return 2 * num // 3 + 1


def split(secret: bytes, num: int, least: int) -> list[bytes]:
    """Shares 1 to `num` of a secret; any `least` of them reconstruct it, fewer reveal nothing."""
    coefficients = [int.from_bytes(secret), *(secrets.randbelow(PRIME) for _ in range(least - 1))]

    def at(x: int) -> int:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * x + coefficient) % PRIME
        return value

    return [at(x).to_bytes(SHARE_BYTES) for x in range(1, num + 1)]


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret reconstructed from these shares, by their numbers; garbage if shares are wrong.

    Raises:
        ValueError: They do not encode a secret of 32 bytes.
    """
    total = 0
    for x, share in shares.items():
        others = [other for other in shares if other != x]
        above = math.prod(others) % PRIME
        below = math.prod(other - x for other in others) % PRIME
        total += int.from_bytes(share) * above * pow(below, -1, PRIME)
    try:
        return (total % PRIME).to_bytes(BYTES)
    except OverflowError:
        raise ValueError("shares of no secret") from None


def seal(private: bytes, peer: bytes, about: bytes, text: bytes) -> bytes:
    """Encrypt a text for the client with public key `peer`. A key, pair and direction are used once only."""
    return ChaCha20Poly1305(_agree(private, peer, b"seal" + about)).encrypt(bytes(12), text, None)


def unseal(private: bytes, peer: bytes, about: bytes, sealed: bytes) -> bytes:
    """Decrypt a text from `seal` by the client with public key `peer`.

    Raises:
        cryptography.exceptions.InvalidTag: Wrong key, direction or round, or a modified text.
    """
    return ChaCha20Poly1305(_agree(private, peer, b"seal" + about)).decrypt(bytes(12), sealed, None)


def expand(key: bytes, size: int) -> Words:
    """PRG(key): uniform ring elements (size,)."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(4 * size)), "<u4")


def add_pairwise(total: Words, name: str, private: bytes, peers: Mapping[str, bytes], about: bytes) -> None:
    """Add to `total` (size,) the masks that client `name` shares with others.

    Args:
        total: Modified in place.
        name: Name of the client.
        private: Its private mask key.
        peers: Public mask keys of the other clients, by name.
        about: Identifies the round; another value gives other masks.
    """
    for peer, key in peers.items():
        mask = expand(_agree(private, key, b"mask" + about), total.size)
        if peer > name:
            total += mask
        else:
            total -= mask


def masked(values: Words, name: str, own: Secrets, peers: Mapping[str, bytes], about: bytes) -> Words:
    """y_k (size,), from x_k and the public keys of the other clients; see the module docstring."""
    total = values + expand(own.seed, values.size)
    add_pairwise(total, name, own.mask, peers, about)
    return total


def encode(change: Float64, weight: float, bound: float) -> Words:
    """Round a vector (size,) times its weight to multiples of bound / 2^30, as ring elements."""
    return np.rint(change * (weight * RANGE / bound)).astype(np.int64).astype(np.uint32)


def decode(total: Words, bound: float, num: int) -> Float64:
    """The sum of `num` encoded vectors (size,).

    Raises:
        ValueError: It exceeds the possible range, because a vector was invalid or a share was wrong.
    """
    steps = total.astype(np.int32).astype(np.float64)
    if np.abs(steps).max(initial=0) > RANGE + num:
        raise ValueError("out of range")
    return steps * (bound / RANGE)


def bound_of(clip: float | None, num: int) -> float:
    """Power of two that bounds every element of a sum.

    Args:
        clip: Bound on the norm of each vector, each of weight 1; None: the weights sum to at most 1.
        num: Number of vectors.
    """
    return 2.0 ** math.ceil(math.log2(LARGEST if clip is None else clip * num))


def room_for_rounding(clip: float, num: int, size: int) -> float:
    """Norm to clip a vector to, so that its norm after rounding is at most `clip`."""
    return max(0.0, clip - bound_of(clip, num) / RANGE * math.sqrt(size) / 2)


def capped(nums: Mapping[str, int], cap: int) -> dict[str, int]:
    """n_k of each client, capped at `cap` (0: no cap)."""
    return {name: min(num, cap) if cap else num for name, num in nums.items()}


def weights_of(nums: Mapping[str, int], cap: int) -> dict[str, float]:
    """n_k / n of each client, from the numbers returned by `capped`."""
    weights = capped(nums, cap)
    total = sum(weights.values())
    return {name: num / total for name, num in weights.items()}


@dataclass(frozen=True)
class Card:
    """A client's public data for a round."""

    mask: bytes
    """X25519 public key of its pairwise masks."""
    seal: bytes
    """X25519 public key used to encrypt its shares."""
    num_examples: int
    """n_k."""
    signature: bytes
    """Signature of `signed` by its node's key; empty in a simulation, where nodes have no keys."""

    def signed(self, about: bytes) -> bytes:
        """The text to sign; `about` identifies the round."""
        return digest(b"card", about, self.mask, self.seal, self.num_examples.to_bytes(8))


def write_roll(cards: Mapping[str, Card], cap: int) -> str:
    """The list of a round: the cards of its clients by name, and the cap of their weights, as JSON."""
    clients = {
        name: {"mask": card.mask.hex(), "seal": card.seal.hex(), "signature": card.signature.hex()}
        | {"num_examples": card.num_examples}
        for name, card in sorted(cards.items())
    }
    return json.dumps({"cap": cap, "clients": clients})


def read_roll(text: str) -> tuple[dict[str, Card], int]:
    """Inverse of `write_roll`; the clients are sorted by name."""
    roll = json.loads(text)
    cards = {
        name: Card(
            bytes.fromhex(card["mask"]),
            bytes.fromhex(card["seal"]),
            int(card["num_examples"]),
            bytes.fromhex(card["signature"]),
        )
        for name, card in sorted(roll["clients"].items())
    }
    return cards, int(roll["cap"])


def round_digest(
    run: str, server_round: int, settings: str, broadcast: Mapping[str, NDArray[np.generic]]
) -> bytes:
    """Identifies a round and its inputs. Clients with different inputs have masks that do not cancel.

    Of the broadcast everything counts: the same bytes under another name, type or shape are another model.
    """
    parts = [
        (name.encode(), value.dtype.str.encode(), str(value.shape).encode(), value.tobytes())
        for name, value in sorted(broadcast.items())
    ]
    return digest(run.encode(), server_round.to_bytes(8), settings.encode(), *chain.from_iterable(parts))


def survivors_digest(about: bytes, roll: str, survivors: Sequence[str]) -> bytes:
    """The text that clients sign: the list of clients whose vectors are in the sum."""
    return digest(b"survivors", about, roll.encode(), *(name.encode() for name in survivors))


def digest(*parts: bytes) -> bytes:
    """A hash of a sequence of texts; different sequences have different hashes."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8) + part)
    return whole.digest()


def _agree(private: bytes, peer: bytes, about: bytes) -> bytes:
    """A key shared by the owners of two X25519 keys, for one purpose."""
    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(peer))
    return HKDF(SHA256(), BYTES, salt=None, info=b"fedsdr secure sum " + about).derive(shared)
