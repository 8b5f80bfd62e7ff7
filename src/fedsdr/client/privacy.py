"""Differential privacy of the shared adapter: what a client's change is clipped to, the noise, and its price.

The unit is a client: whoever sees the shared adapters of all rounds can hardly tell whether it took part at
all (central), or which data it has (local). What else a client reports, its numbers of examples, losses and
scores, is not covered (docs/threat_model.md).

    central: R <- R + (1 / m) (sum over k of clip(dR_k, C) + N(0, (sigma C)^2)), by the server, m those asked
    local:   R_k = R + clip(dR_k, C) + N(0, (sigma C)^2), by each client, before it sends

    clip(d, C) = d min(1, C / |d|), over all numbers of the shared adapter that travel

Taking one client out changes the sum by at most C; other data of a client change what it sends by at most
2 C. So sigma is the noise multiplier of the first, and sigma / 2 that of the second.

Papers: McMahan et al., ICLR 2018, arXiv 1710.06963 (client level); Mironov, CSF 2017, arXiv 1702.07476
(accounting). Differs: every client is taken to be asked in every round in which the public draw names it, and
nothing is gained by sampling; weights are equal, since n_k is a client's own.
"""

import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedsdr.client.wire import Arrays, Float32, pack, unpack
from fedsdr.config import Privacy
from fedsdr.errors import UserError
from fedsdr.seeds import seed_for

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


def gaussian(size: int, seed: int | None) -> Float64:
    """Standard normal numbers (size,), from the system's cryptographic source where there is no seed.

    Each is half the sum of four, so that the floating-point grid of one draw does not tell the noise.

    Paper: Holohan and Braghin, "Secure random sampling in differential privacy", ESORICS 2021,
    arXiv 2107.10138.
    """
    if seed is not None:
        return np.random.default_rng(seed).standard_normal(size)
    from scipy.special import ndtri

    total = np.zeros(size)
    for _ in range(4):
        words = np.frombuffer(os.urandom(8 * size), np.uint64)
        total += ndtri(((words >> np.uint64(11)) + 0.5) * 2.0**-53)
    return total / 2


def noise_seed(privacy: Privacy, run_seed: int, *path: str | int) -> int | None:
    """Seed of the noise of a round; None for the cryptographic source."""
    return seed_for(run_seed, "privacy", *path) if privacy.source == "seeded" else None


def noised(trained: Arrays, received: Arrays, privacy: Privacy, seed: int | None) -> Arrays:
    """What a client sends under local privacy: what it received, its clipped change, and noise."""
    before = pack(received).astype(np.float64)
    change = clip(pack(trained) - pack(received), privacy.clip)
    sent = before + change + privacy.noise * privacy.clip * gaussian(change.size, seed)
    return unpack(sent.astype(np.float32), {key: value.shape for key, value in trained.items()})


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
