"""Differential privacy of the shared adapter: what a client's change is clipped to, the noise, and its price.

The unit is a client: whoever sees the shared adapters of all rounds can hardly tell whether it took part at
all (central), or which data it has (local). What else a client reports, its numbers of examples, losses and
scores, is not covered (docs/threat_model.md).

    central: R <- R + (1 / m) (sum over k of clip(dR_k, C) + N(0, (sigma C)^2)), by the server, m those asked
    local:   R_k = R + clip(dR_k, C) + N(0, (sigma C)^2), by each client, before it sends

    clip(d, C) = d min(1, C / |d|), over all numbers of the shared adapter that travel

Neighbours are two federations of the same clients and draws in one of which a client's change is zero
(central): the sum then differs by at most C; or a client with other data (local): what it sends differs by at
most 2 C. So sigma is the noise multiplier of the first, and sigma / 2 that of the second. Epsilon is that of
one run, whose server follows the protocol: it does not count what a server learns by asking more often.

Papers: McMahan et al., ICLR 2018, arXiv 1710.06963 (client level); Mironov, CSF 2017, arXiv 1702.07476
(accounting). Differs: every client is taken to be asked in every round in which the public draw names it, and
nothing is gained by sampling; weights are equal, since n_k is a client's own.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsdr.client.wire import Arrays, Float32, pack, unpack
from fedsdr.config import Privacy
from fedsdr.errors import UserError
from fedsdr.seeds import seed_for
from fedsdr.storage import write_file

Float64 = NDArray[np.float64]


def clip(change: NDArray[np.floating], most: float) -> Float64:
    """The change (num_values,), scaled down to the Euclidean norm `most` where it is larger.

    Raises:
        ValueError: It holds a number that is not finite, of which there is no clipping.
    """
    wide = change.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    if not np.isfinite(norm):
        raise ValueError("a change that is not finite cannot be clipped")
    return wide * (most / norm) if norm > most else wide


def gaussian(size: int, seed: int | bytes | None) -> Float64:
    """Standard normal numbers (size,).

    Each secure one is half the sum of four, so that the floating-point grid of one does not tell the noise.

    Paper: Holohan and Braghin, "Secure random sampling in differential privacy", ESORICS 2021,
    arXiv 2107.10138.

    Args:
        size: How many.
        seed: A number: numpy's generator, for simulations. A secret: SHAKE-256 of it. None: the system's
            cryptographic source.
    """
    if isinstance(seed, int):
        return np.random.default_rng(seed).standard_normal(size)
    from scipy.special import ndtri

    num_bytes = 4 * 8 * size
    drawn = os.urandom(num_bytes) if seed is None else hashlib.shake_256(seed).digest(num_bytes)
    words = np.frombuffer(drawn, np.uint64).reshape(4, size)
    return np.asarray(ndtri(((words >> np.uint64(11)) + 0.5) * 2.0**-53).sum(axis=0) / 2)


def noise_seed(privacy: Privacy, run_seed: int, *path: str | int) -> int | None:
    """Seed of the noise of a round; None for the cryptographic source."""
    return seed_for(run_seed, "privacy", *path) if privacy.source == "seeded" else None


def noised(trained: Arrays, received: Arrays, privacy: Privacy, seed: int | None, secret: Path) -> Arrays:
    """What a client sends under local privacy: what it received, its clipped change, and noise.

    Secure noise follows from a secret that the client keeps, and from what it received and learnt: a round
    that is asked again after a crash is answered by the same bytes, not by a second release.
    """
    before = pack(received).astype(np.float64)
    change = clip(pack(trained) - pack(received), privacy.clip)
    noise = seed if seed is not None else _key(secret) + _digest(before, change)
    sent = before + change + privacy.noise * privacy.clip * gaussian(change.size, noise)
    return unpack(sent.astype(np.float32), {key: value.shape for key, value in trained.items()})


def _key(secret: Path) -> bytes:
    """The client's secret, made at first."""
    if not secret.exists():
        write_file(secret, os.urandom(32))
        secret.chmod(0o600)
    return secret.read_bytes()


def _digest(*vectors: Float64) -> bytes:
    return hashlib.sha256(b"".join(vector.tobytes() for vector in vectors)).digest()


def private_mean(
    updates: Iterable[Arrays], sent: Arrays, num_asked: int, privacy: Privacy, seed: int | None
) -> Arrays:
    """The new shared adapter under central privacy.

    Args:
        updates: Shared adapters of the clients whose replies passed.
        sent: What they began from.
        num_asked: m, fixed before anyone answers: who fails to answer counts as no change.
        privacy: Clipping norm and noise.
        seed: Of the noise; None for the cryptographic source.
    """
    before: Float32 = pack(sent)
    total = np.zeros(before.size)
    for update in updates:
        total += clip(pack(update) - before, privacy.clip)
    total += privacy.noise * privacy.clip * gaussian(before.size, seed)
    new = (before + total / num_asked).astype(np.float32)
    return unpack(new, {key: value.shape for key, value in sent.items()})


def epsilon(privacy: Privacy, num_rounds: int) -> float:
    """What so many rounds with a client cost it, at `privacy.delta`: epsilon by opacus' Renyi accountant.

    Raises:
        UserError: opacus is not installed.
    """
    if not num_rounds:
        return 0.0
    try:
        from opacus.accountants import RDPAccountant
    except ImportError:
        raise UserError(
            f"privacy.kind = {privacy.kind!r} needs opacus' accountant: pip install 'fedsdr[privacy]'"
        ) from None
    multiplier = privacy.noise if privacy.kind == "central" else privacy.noise / 2
    accountant = RDPAccountant()
    accountant.history = [(multiplier, 1.0, num_rounds)]
    return float(accountant.get_epsilon(privacy.delta))


def affordable(privacy: Privacy, most: int) -> int:
    """How many rounds, of at most so many, the budget pays for."""
    low, high = 0, most
    while low < high:  # epsilon grows with the rounds
        middle = (low + high + 1) // 2
        low, high = (middle, high) if epsilon(privacy, middle) <= privacy.budget else (low, middle - 1)
    return low
