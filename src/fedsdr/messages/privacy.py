"""Differential privacy of the shared adapter: clipping, noise, and the privacy cost.

The unit is a client: an observer of the shared adapters of all rounds can hardly infer whether the client
took part at all (central), or which data it has (local). Other values that a client reports, such as its
numbers of examples, losses and scores, are not covered (docs/threat_model.md).

    central: R <- R + (1 / m) (sum over k of clip(dR_k, C) + N(0, (sigma C)^2)), by the server, m sampled
    local:   R_k = R + clip(dR_k, C) + N(0, (sigma C)^2), by each client, before sending

    clip(d, C) = d min(1, C / |d|), over all transmitted values of the shared adapter

Central: neighbours are two federations with the same clients and draws, where one client's change is zero in
one of them; the sums differ by at most C. Local: neighbours are a client with one data set and with another;
its messages differ by at most 2 C. So mu = 1 / sigma for central and mu = 2 / sigma for local privacy, where
sigma is privacy.noise_multiplier and C privacy.clipping_norm. The reported epsilon assumes a server that
follows the protocol. A client that keeps a `Ledger` also counts what a server learns from extra rounds or
other runs.

Papers: McMahan et al., ICLR 2018, arXiv 1710.06963 (client level); Dong, Roth and Su, JRSS B 2022, arXiv
1905.02383 (Gaussian differential privacy and its composition). Differs: every client is assumed to be sampled
in every round in which the public draw names it, without amplification by sampling; weights are equal, since
n_k is private to the client.
"""

import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsdr.config import LEAST_SCALE, MOST_SCALE, Privacy
from fedsdr.errors import UserError
from fedsdr.messages.wire import Arrays, Float32, pack, unpack
from fedsdr.seeds import seed_for
from fedsdr.storage import SECRET, read_json, write_file, write_json

Float64 = NDArray[np.float64]
SECRET_BYTES = 32
STEP = 2.0**-20
"""Quantum of the released change, in standard deviations of the noise."""


def clip(change: NDArray[np.floating], most: float) -> Float64:
    """The change (num_values,), scaled down to the Euclidean norm `most` if it is larger.

    Raises:
        ValueError: It contains a non-finite value, which cannot be clipped.
    """
    wide = change.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    if not np.isfinite(norm):
        raise ValueError("a change that is not finite cannot be clipped")
    return wide * (most / norm) if norm > most else wide


def gaussian(size: int, seed: int | bytes | None) -> Float64:
    """Standard normal numbers (size,).

    Each secure sample is half the sum of four, so that the floating-point grid does not reveal the noise.

    Paper: Holohan and Braghin, "Secure random sampling in differential privacy", ESORICS 2021,
    arXiv 2107.10138.

    Args:
        size: Number of samples.
        seed: An integer: numpy's generator, for simulations. Bytes: SHAKE-256 of the secret. None: the
            system's cryptographic source.
    """
    if isinstance(seed, int):
        return np.random.default_rng(seed).standard_normal(size)
    from scipy.special import ndtri

    num_bytes = 4 * 8 * size
    drawn = os.urandom(num_bytes) if seed is None else hashlib.shake_256(seed).digest(num_bytes)
    words = np.frombuffer(drawn, np.uint64).reshape(4, size)
    # 52 bits plus one half are exact, so no value is 0 or 1, whose normal quantiles are infinite.
    return np.asarray(ndtri(((words >> np.uint64(12)) + 0.5) * 2.0**-52).sum(axis=0) / 2)


def release(total: Float64, privacy: Privacy, seed: int | bytes | None) -> Float64:
    """Clipped changes with noise, in whole steps of sigma C 2^-20 (num_values,).

    Without quantisation, the low bits reveal a change: noise near zero is a sum of numbers around 1 and has
    no bits below theirs, while noise that a change brings near zero has the low bits of the change. Rounding
    after the noise costs no privacy. It precedes the addition of the broadcast, which may be zero and hide no
    bits.

    Paper: Mironov, "On significance of the least significant bits for differential privacy", CCS 2012.

    Args:
        total: Clipped changes, summed (num_values,).
        privacy: Clipping norm and noise multiplier.
        seed: As for `gaussian`.
    """
    scale = privacy.noise_multiplier * privacy.clipping_norm
    noisy = total + scale * gaussian(total.size, seed)
    return np.rint(noisy / (scale * STEP)) * (scale * STEP)


def noise_seed(privacy: Privacy, run_seed: int, *path: str | int) -> int | None:
    """Seed of the noise of a round; None for the cryptographic source."""
    return seed_for(run_seed, "privacy", *path) if privacy.source == "seeded" else None


@dataclass(frozen=True)
class Ledger:
    """A client's record of every noised update that it sent, across all servers and runs.

    The server chooses sigma and the rounds, possibly after seeing earlier updates. For Gaussian releases,
    stopping at a bound on the sum of mu_i^2 remains sound, at no extra cost (Smith and Thakurta, "Fully
    adaptive composition for Gaussian differential privacy", 2022, arXiv 2210.17520; Koskela, Tobaben and
    Honkela, ICLR 2023, arXiv 2209.15596). It is a filter: the guarantee is `max_epsilon`, not `spent`. It
    covers shared adapters only, not losses, scores or counts.
    """

    path: Path
    """A JSON file: hash of the inputs of each update -> its sigma."""
    max_epsilon: float
    """Maximum total epsilon of all updates."""
    delta: float

    def spent(self) -> float:
        """Epsilon of all updates so far.

        Raises:
            UserError: The record is damaged.
        """
        return self._cost(self._entries().values())

    def check(self, noise_multiplier: float) -> None:
        """Reject a limit that the first update would already exceed, before any computation.

        Raises:
            UserError: It would be exceeded; or as `spent`.
        """
        if self._entries():
            return
        first = self._cost([noise_multiplier])
        if not first <= self.max_epsilon:
            raise UserError(
                f"one update with privacy.noise_multiplier = {noise_multiplier:g} would cost this client"
                f" epsilon = {first:.3g}; its max-epsilon is {self.max_epsilon:g} at delta = {self.delta:g}"
            )

    def _cost(self, sigmas: Iterable[float]) -> float:
        """Epsilon of updates with these sigmas."""
        return _epsilon(math.hypot(*(_mu("local", sigma) for sigma in sigmas)), self.delta)

    def _entries(self) -> dict[str, float]:
        entries: Any = read_json(self.path) if self.path.exists() else {}
        if not isinstance(entries, dict) or not all(
            type(sigma) is float and LEAST_SCALE <= sigma <= MOST_SCALE for sigma in entries.values()
        ):
            raise UserError(f"{self.path} is damaged; expected the record as fedsdr wrote it")
        return entries

    def enter(self, release: bytes, noise_multiplier: float) -> None:
        """Record an update before it is sent.

        Args:
            release: Its inputs. The same release again reveals nothing new, and costs nothing.
            noise_multiplier: Its sigma.

        Raises:
            UserError: This update would exceed `max_epsilon`.
        """
        name, entries = hashlib.sha256(release).hexdigest(), self._entries()
        if name in entries:
            return
        spent = self._cost([*entries.values(), noise_multiplier])
        if not spent <= self.max_epsilon:
            raise UserError(
                f"one more update would raise this client's total epsilon to {spent:.3g}, after the"
                f" {len(entries)} of {self.path}; its max-epsilon is {self.max_epsilon:g} at delta ="
                f" {self.delta:g}"
            )
        write_json(self.path, {**entries, name: float(noise_multiplier)})


def noised(
    trained: Arrays,
    received: Arrays,
    privacy: Privacy,
    seed: int | None,
    secret: Path,
    ledger: Ledger | None = None,
) -> Arrays:
    """A client's message under local privacy: the broadcast, its clipped change, and noise.

    Secure noise is derived from the client's secret and from what it received, trained and adds. A round that
    is repeated after a crash therefore sends the same bytes, not a second release, provided that training is
    bit-reproducible.

    Raises:
        UserError: As `Ledger.enter`; or the client's secret is damaged.
    """
    before = pack(received).astype(np.float64)
    learnt = pack(trained) - pack(received)
    # A non-finite change counts as none: a server could provoke it by its settings, to learn about the data.
    change = clip(learnt if np.isfinite(learnt).all() else np.zeros_like(learnt), privacy.clipping_norm)
    noise: int | bytes | None = seed
    if noise is None:
        noise = _key(secret) + _digest(
            before, change, np.array([privacy.noise_multiplier, privacy.clipping_norm])
        )
        if ledger:
            ledger.enter(noise, privacy.noise_multiplier)
    sent = before + release(change, privacy, noise)
    return unpack(sent.astype(np.float32), {key: value.shape for key, value in trained.items()})


def _key(secret: Path) -> bytes:
    """The client's secret, created on first use.

    Raises:
        UserError: The file is damaged: noise from a short secret could be guessed.
    """
    if not secret.exists():
        write_file(secret, os.urandom(SECRET_BYTES), SECRET)
    if len(key := secret.read_bytes()) != SECRET_BYTES:
        raise UserError(f"{secret} is damaged: {len(key)} bytes, expected {SECRET_BYTES}; delete it")
    return key


def _digest(*vectors: Float64) -> bytes:
    return hashlib.sha256(b"".join(vector.tobytes() for vector in vectors)).digest()


def private_mean(
    updates: Iterable[Arrays], sent: Arrays, num_asked: int, privacy: Privacy, seed: int | None
) -> Arrays:
    """The new shared adapter under central privacy.

    Args:
        updates: Shared adapters of the clients whose replies passed validation.
        sent: The broadcast that they started from.
        num_asked: m, fixed before any client answers; a client that fails to answer counts as no change.
        privacy: Clipping norm and noise multiplier.
        seed: Seed of the noise; None for the cryptographic source.
    """
    before: Float32 = pack(sent)
    total = np.zeros(before.size)
    for update in updates:
        total += clip(pack(update) - before, privacy.clipping_norm)
    return noised_mean(total, sent, num_asked, privacy, seed)


def noised_mean(total: Float64, sent: Arrays, num_asked: int, privacy: Privacy, seed: int | None) -> Arrays:
    """As `private_mean`, from the sum of the clipped changes (num_values,)."""
    before: Float32 = pack(sent)
    new = (before + release(total, privacy, seed) / num_asked).astype(np.float32)
    return unpack(new, {key: value.shape for key, value in sent.items()})


def epsilon(privacy: Privacy, num_rounds: int) -> float:
    """Privacy cost for a client of this many rounds: the exact epsilon at `privacy.delta`."""
    return _epsilon(math.sqrt(num_rounds) * _mu(privacy.kind, privacy.noise_multiplier), privacy.delta)


def _mu(kind: str, sigma: float) -> float:
    """Sensitivity of a release to one client, in standard deviations of the noise."""
    return 1 / sigma if kind == "central" else 2 / sigma


def _epsilon(mu: float, delta: float) -> float:
    """Epsilon of a sequence of Gaussian releases, mu^2 = sum of mu_i^2; 0 if there are none.

        delta = Phi(-eps / mu + mu / 2) - e^eps Phi(-eps / mu - mu / 2)

    Solved for x = eps / mu - mu / 2, in logarithms: the second term is exp(-x^2 / 2) erfcx((x + mu) / sqrt 2)
    / 2, so that even an epsilon of millions does not overflow.

    Papers: Balle and Wang, ICML 2018, arXiv 1805.06530 (equation 6); Dong, Roth and Su, JRSS B 2022, arXiv
    1905.02383 (composition).
    """
    from scipy.optimize import brentq
    from scipy.special import erfcx, log_ndtr

    def excess(x: float) -> float:
        first = log_ndtr(-x)
        second = np.log(erfcx((x + mu) / math.sqrt(2)) / 2) - x * x / 2
        return float(first + np.log1p(-np.exp(second - first)) - math.log(delta))

    if not mu or excess(-mu / 2) <= 0:
        return 0.0
    most = math.sqrt(-2 * math.log(delta))  # here the first term alone is at most delta / 2
    root = float(brentq(excess, -mu / 2, most, xtol=1e-300, rtol=1e-14, maxiter=1000))
    return mu * (mu / 2 + root)


def affordable(privacy: Privacy, most: int) -> int:
    """Number of rounds that `privacy.max_epsilon` allows, at most `most`."""
    low, high = 0, most
    while low < high:  # epsilon increases with the rounds
        middle = (low + high + 1) // 2
        low, high = (middle, high) if epsilon(privacy, middle) <= privacy.max_epsilon else (low, middle - 1)
    return low
