"""Aggregation: the clients' LoRA factors become one target.

The functions behind `methods.AGGREGATIONS`, including those of plugins. Updates are ordered by client id, so
that the order of arrival does not change a byte. Notation: A_k (r_k, d_in) and B_k (d_out, r_k) of client k
after its local update, w_k = n_k / n its weight.

The base is never modified. Changes of the base stay a pair of float32 factors, the residual, which is sent to
the clients in full.
"""

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsdr.config import Server
from fedsdr.errors import UserError
from fedsdr.messages.wire import Arrays, Shapes, cut, pad, pairs, rank_of, shapes_of
from fedsdr.plugins import FUNCTIONS
from fedsdr.rows import Aggregation
from fedsdr.server.robust import ROBUST
from fedsdr.server.validate import Update

Float64 = NDArray[np.float64]


class Before(NamedTuple):
    """The server's state when the updates arrive."""

    shared: Arrays
    """The transmitted part of the shared adapter: A (rank, d_in) and B (d_out, rank) by PEFT key."""
    server_round: int
    """The round to aggregate, counted from 1."""


class Target(NamedTuple):
    """The result of an aggregation."""

    shared: Arrays
    """The new factors, with the keys and shapes of `Before.shared`, float32."""
    added: Arrays
    """Factors added to the base, A (m, d_in) and B (d_out, m), float32; {} for none."""


def average(updates: Iterable[Update], server: Server) -> Target:
    """Aggregate each factor separately; with the mean, R <- sum over k of (n_k / n) R_k.

    This equals R + sum of (n_k / n) dR_k, the paper's form, since the weights sum to one. The mean of A and
    of B is not the mean of B A; other aggregations correct this. With "ffa" only B is aggregated, and the
    mean of B A is the mean of B times the common A. With "fedsa" only A is aggregated; no mean of B A is
    intended.

    Paper: FedSDR, section 4; Zhang et al., FedIT, arXiv 2305.05644; Sun et al., FFA-LoRA, arXiv
    2403.12313; Guo et al., FedSA-LoRA, arXiv 2410.01463.

    Args:
        updates: At least one, ordered by client id.
        server: Names the robust aggregator.
    """
    return Target(ROBUST[server.robust](updates, server.num_byzantine), {})


def flexlora(updates: Iterable[Update], shared: Arrays) -> Target:
    """Truncate the mean product to the server's rank r: M = sum of (n_k / n) B_k A_k ~ U_r S_r V_r^T.

    New B = U_r sqrt(S_r) and A = sqrt(S_r) V_r^T: the best rank-r approximation of M (Eckart and Young). Its
    first r_k ranks, used by a client of smaller rank, are the best rank-r_k approximation. M (d_out, d_in) is
    never formed: it is the product of two factors of rank sum of r_k, whose QR decompositions leave a small
    singular value decomposition.

    Paper: Bai et al., FlexLoRA, arXiv 2402.11505, section 3. Differs: the paper leaves open how the singular
    values are divided between A and B.
    """
    updates, weights = _weighted(updates)
    target: Arrays = {}
    for key_a, key_b in pairs(shared):
        b, a = _stacked(updates, weights, key_a, key_b)
        (q_b, r_b), (q_a, r_a) = np.linalg.qr(b), np.linalg.qr(a.T)
        u, s, vt = np.linalg.svd(r_b @ r_a.T)
        # Fewer if the layer, or all clients together, are narrower than the rank. For the other ranks A is
        # unchanged and B is zero: if both were zero, they would have no gradient and never learn again.
        kept = min(shared[key_a].shape[0], int((s > 1e-12 * s[0]).sum()))
        root = np.sqrt(s[:kept])
        target[key_a] = shared[key_a].copy()
        target[key_b] = np.zeros_like(shared[key_b])
        target[key_a][:kept] = root[:, None] * (vt[:kept] @ q_a.T)
        target[key_b][:, :kept] = q_b @ u[:, :kept] * root
    return Target(target, {})


def flora(updates: Iterable[Update], shared: Arrays) -> Target:
    """Add the mean product to the base, as the stack of the clients' factors.

    sum of w_k B_k A_k = [w_1 B_1 ... w_K B_K] [A_1; ...; A_K], for any ranks of the clients. The server's
    shared adapter keeps its initial values, with B = 0: clients start each round with freshly drawn factors.

    Paper: Wang et al., FLoRA, arXiv 2409.05976, section 3. Differs: all clients draw the same A in a round,
    while the authors' code draws one for each; B carries the weight, not A.
    """
    updates, weights = _weighted(updates)
    added: Arrays = {}
    for key_a, key_b in pairs(shared):
        b, a = _stacked(updates, weights, key_a, key_b)
        added |= {key_a: a.astype(np.float32), key_b: b.astype(np.float32)}
    return Target(shared, added)


def fedex(updates: Iterable[Update], shared: Arrays) -> Target:
    """Average A and B, and add the error of their product to the base.

    sum of w_k B_k A_k - B A, with the means B and A, is sum over k < K of w_k (B_k - B)(A_k - A_K), since the
    weighted differences from B sum to zero: (K - 1) r ranks, and none for a single client.

    Paper: Singhal et al., FedEx-LoRA, arXiv 2410.09432. Differs: weights n_k / n, where the paper has 1 / K;
    its code adds the product to the base weights and discards the factors.
    """
    updates, weights = _weighted(updates)
    mean = ROBUST["none"](updates, 0)
    last = updates[-1]
    added: Arrays = {}
    for key_a, key_b in pairs(shared):
        others = list(zip(weights[:-1], updates[:-1], strict=True))
        no_a, no_b = last.arrays[key_a][:0], last.arrays[key_b][:, :0]
        a = [u.arrays[key_a].astype(np.float64) - last.arrays[key_a] for _, u in others]
        b = [w * (u.arrays[key_b].astype(np.float64) - mean[key_b]) for w, u in others]
        added[key_a] = np.concatenate([no_a, *a], axis=0).astype(np.float32)
        added[key_b] = np.concatenate([no_b, *b], axis=1).astype(np.float32)
    return Target(mean, added if len(updates) > 1 else {})


def fedrot(updates: Iterable[Update], server: Server, before: Before) -> Target:
    """Rotate each client's factors towards the broadcast ones, then aggregate each factor separately.

    In round 1 nothing is rotated, because the broadcast B is still zero.

    Paper: Zhang et al., FedRot-LoRA, arXiv 2602.23638; the details follow its public code, where the clients
    rotate. The server has all the inputs, and computes the same result.
    """
    if before.server_round > 1:
        factor = server.rotation_reference
        if factor == "alternate":
            factor = "B" if before.server_round % 2 else "A"
        updates = (_rotated(update, before.shared, factor, server.rotation) for update in updates)
    return Target(ROBUST[server.robust](updates, server.num_byzantine), {})


def _rotated(update: Update, reference: Arrays, factor: str, strength: float) -> Update:
    """R^T A and B R for the rotation R that brings one factor closest to the reference; B A is unchanged.

    Orthogonal Procrustes: with A A_ref^T = U S V^T (or B^T B_ref), R = U V^T; the last direction is flipped
    if that would be a reflection. At a strength l below 1, R is replaced by the orthogonal matrix nearest to
    (1 - l) I + l R.
    """
    arrays: Arrays = {}
    for key_a, key_b in pairs(reference):
        a, b = (update.arrays[key].astype(np.float64) for key in (key_a, key_b))
        u, _, vt = np.linalg.svd(a @ reference[key_a].T if factor == "A" else b.T @ reference[key_b])
        if np.linalg.det(u @ vt) < 0:
            u[:, -1] *= -1
        rotation = u @ vt
        if strength < 1:
            u, _, vt = np.linalg.svd((1 - strength) * np.eye(len(a)) + strength * rotation)
            rotation = u @ vt
        arrays |= {key_a: (rotation.T @ a).astype(np.float32), key_b: (b @ rotation).astype(np.float32)}
    return replace(update, arrays=arrays)


def zeropad(updates: Iterable[Update], shared: Arrays) -> Target:
    """Zero-pad the factors of clients of smaller rank, and average.

    The zeros count: a rank that few clients have shrinks by the weight of the clients without it. A rank that
    no client of this round has keeps its values.

    Paper: Cho et al., HetLoRA, arXiv 2401.06432. Differs: only its padding, without rank pruning and
    norm-based weights.
    """
    shapes = shapes_of(shared)
    ranks: list[int] = []

    def padded() -> Iterator[Update]:
        for update in updates:
            ranks.append(rank_of(update.arrays))
            yield replace(update, arrays=pad(update.arrays, shapes))

    mean = cut(ROBUST["none"](padded(), 0), max(ranks))
    target = {key: value.copy() for key, value in shared.items()}
    for key, value in mean.items():
        target[key][: len(value), : value.shape[1]] = value
    return Target(target, {})


def checked(name: str, found: Mapping[str, NDArray[Any]], shapes: Shapes) -> Arrays:
    """The tensors that an aggregation or server optimizer, maybe a plugin's, has returned, in float32.

    Args:
        name: The setting and its value, for errors.
        found: The tensors by PEFT key.
        shapes: The shape of each expected tensor.

    Raises:
        UserError: Another key or shape, or a value that is not finite: clients could not use it.
    """
    if wrong := sorted(found.keys() ^ shapes.keys()):
        raise UserError(f"{name} returned other tensors than expected: {wrong[0]} is missing or unknown")
    tensors = {key: np.asarray(found[key], np.float32) for key in shapes}
    for key, value in tensors.items():
        if value.shape != shapes[key]:
            raise UserError(f"{name} returned {key} of shape {value.shape}, expected {shapes[key]}")
        if not np.isfinite(value).all():
            raise UserError(f"{name} returned values of {key} that are not finite")
    return tensors


def add_residual(residual: Arrays, added: Arrays) -> Arrays:
    """Stack new changes of the base onto earlier ones: [B B'] [A; A'].

    If the stack would exceed the full rank of the layer (d_out, d_in), it is replaced by its product and an
    identity: exact up to float32 rounding, and of rank min(d_out, d_in) for any number of rounds.

    Args:
        residual: Factors by PEFT key; {} for none.
        added: The same.
    """
    if not added:
        return residual
    stacked: Arrays = {}
    for key_a, key_b in pairs(added):
        a, b = added[key_a], added[key_b]
        if residual:
            a = np.concatenate([residual[key_a], a], axis=0)
            b = np.concatenate([residual[key_b], b], axis=1)
        d_out, d_in = len(b), a.shape[1]
        if len(a) > min(d_out, d_in):
            product = (b.astype(np.float64) @ a).astype(np.float32)
            unit = np.eye(min(d_out, d_in), dtype=np.float32)
            a, b = (product, unit) if d_out <= d_in else (unit, product)
        stacked |= {key_a: a, key_b: b}
    return stacked


def _weighted(updates: Iterable[Update]) -> tuple[Sequence[Update], Sequence[float]]:
    """All updates, and the weight n_k / n of each."""
    updates = list(updates)
    total = sum(update.num_examples for update in updates)
    return updates, [update.num_examples / total for update in updates]


def _stacked(
    updates: Sequence[Update], weights: Sequence[float], key_a: str, key_b: str
) -> tuple[Float64, Float64]:
    """[w_1 B_1 ... w_K B_K] (d_out, sum of r_k) and [A_1; ...; A_K] (sum of r_k, d_in)."""
    b = [w * u.arrays[key_b].astype(np.float64) for w, u in zip(weights, updates, strict=True)]
    a = [u.arrays[key_a].astype(np.float64) for u in updates]
    return np.concatenate(b, axis=1), np.concatenate(a, axis=0)


Aggregate = Callable[[Iterable[Update], Server, Before], Target]
BUILT_IN: dict[str, Aggregate] = {
    "average": lambda updates, server, before: average(updates, server),
    "ffa": lambda updates, server, before: average(updates, server),
    "fedsa": lambda updates, server, before: average(updates, server),
    "flexlora": lambda updates, server, before: flexlora(updates, before.shared),
    "flora": lambda updates, server, before: flora(updates, before.shared),
    "fedex": lambda updates, server, before: fedex(updates, before.shared),
    "fedrot": fedrot,
    "zeropad": lambda updates, server, before: zeropad(updates, before.shared),
}
AGGREGATE: Mapping[str, Aggregate] = ChainMap(FUNCTIONS[Aggregation], BUILT_IN)
