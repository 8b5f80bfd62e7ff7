"""Aggregation: the clients' LoRA factors become one target.

The functions behind `methods.AGGREGATIONS`, those of plugins among them. Updates come in the order of client
ids, so that the order of arrival changes no byte. Notation: A_k (r_k, d_in) and B_k (d_out, r_k) of client k
after its local update, w_k = n_k / n its weight.

What an aggregation adds to the base is never written into it: it stays a pair of float32 factors, the
residual, and all of it is sent to the clients.
"""

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsdr.config import Server
from fedsdr.messages.wire import Arrays, cut, pad, pairs, rank_of
from fedsdr.plugins import FUNCTIONS
from fedsdr.rows import Aggregation
from fedsdr.server.robust import ROBUST
from fedsdr.server.validate import Update

Float64 = NDArray[np.float64]


class Before(NamedTuple):
    """What the server holds when the updates come."""

    shared: Arrays
    """The part of the shared adapter that travels: A (rank, d_in) and B (d_out, rank) by PEFT key."""
    server_round: int
    """The round that is being aggregated, from 1 on."""


class Target(NamedTuple):
    """What an aggregation makes of the updates."""

    shared: Arrays
    """The new factors, of the keys and shapes of `Before.shared`, float32."""
    added: Arrays
    """Factors of what is added to the base, A (m, d_in) and B (d_out, m), float32; {} for nothing."""


def average(updates: Iterable[Update], server: Server) -> Target:
    """Aggregate each factor for itself; with the mean R <- sum over k of (n_k / n) R_k.

    Equal to R + sum of (n_k / n) dR_k, as the paper writes it, since the weights sum to one. The
    mean of A and of B is not the mean of B A; aggregations that mend this are other rows. With "ffa"
    only B comes here, and the mean of B A is the mean of B times the A that all hold. With "fedsa" only A
    comes here; no mean of B A is sought.

    Paper: FedSDR, section 4; Zhang et al., FedIT, arXiv 2305.05644; Sun et al., FFA-LoRA, arXiv
    2403.12313; Guo et al., FedSA-LoRA, arXiv 2410.01463.

    Args:
        updates: At least one, ordered by client id.
        server: Says which robust aggregator.
    """
    return Target(ROBUST[server.robust](updates, server.num_byzantine), {})


def flexlora(updates: Iterable[Update], shared: Arrays) -> Target:
    """Cut the mean product to the server's rank r: M = sum of (n_k / n) B_k A_k ~ U_r S_r V_r^T.

    New B = U_r sqrt(S_r) and A = sqrt(S_r) V_r^T: the best approximation of M of rank r (Eckart and
    Young). The first r_k ranks, which a client of smaller rank takes of it, are the best of rank r_k. M
    (d_out, d_in) is never made: it is the product of two factors of rank sum of r_k, whose QR
    decompositions leave a small singular value decomposition.

    Paper: Bai et al., FlexLoRA, arXiv 2402.11505, section 3. Differs: how the singular values are
    divided between A and B is open there.
    """
    updates, weights = _weighted(updates)
    target: Arrays = {}
    for key_a, key_b in pairs(shared):
        b, a = _stacked(updates, weights, key_a, key_b)
        (q_b, r_b), (q_a, r_a) = np.linalg.qr(b), np.linalg.qr(a.T)
        u, s, vt = np.linalg.svd(r_b @ r_a.T)
        # Fewer where the layer, or all clients together, are narrower than the rank. Of the others A stays as
        # it was and B is zero: where both were zero, they would have no gradient and never learn again.
        kept = min(shared[key_a].shape[0], int((s > 1e-12 * s[0]).sum()))
        root = np.sqrt(s[:kept])
        target[key_a] = shared[key_a].copy()
        target[key_b] = np.zeros_like(shared[key_b])
        target[key_a][:kept] = root[:, None] * (vt[:kept] @ q_a.T)
        target[key_b][:, :kept] = q_b @ u[:, :kept] * root
    return Target(target, {})


def flora(updates: Iterable[Update], shared: Arrays) -> Target:
    """Add the mean product to the base, as the stack of the clients' factors.

    sum of w_k B_k A_k = [w_1 B_1 ... w_K B_K] [A_1; ...; A_K], whatever the clients' ranks. The server's
    shared adapter stays as it was first drawn, with B = 0: clients begin each round with newly drawn factors.

    Paper: Wang et al., FLoRA, arXiv 2409.05976, section 3. Differs: all clients draw the same A in a round,
    where the authors' code draws one for each; B and not A carries the weight.
    """
    updates, weights = _weighted(updates)
    added: Arrays = {}
    for key_a, key_b in pairs(shared):
        b, a = _stacked(updates, weights, key_a, key_b)
        added |= {key_a: a.astype(np.float32), key_b: b.astype(np.float32)}
    return Target(shared, added)


def fedex(updates: Iterable[Update], shared: Arrays) -> Target:
    """Take the means of A and B, and add to the base what they leave out of the mean product.

    sum of w_k B_k A_k - B A, with the means B and A, is sum over k < K of w_k (B_k - B)(A_k - A_K), since the
    weighted differences from B sum to zero: (K - 1) r ranks, and none of a client alone.

    Paper: Singhal et al., FedEx-LoRA, arXiv 2410.09432. Differs: weights n_k / n, where the paper has 1 / K;
    its code adds the product to the base weights and does not keep the factors.
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
    """Rotate each client's factors towards the broadcast ones, then aggregate each factor for itself.

    In round 1 nothing is rotated: the broadcast B is still zero.

    Paper: Zhang et al., FedRot-LoRA, arXiv 2602.23638; the details after its public code, where the clients
    rotate. The server holds all that they need, and computes the same.
    """
    if before.server_round > 1:
        factor = server.rotation_reference
        if factor == "alternate":
            factor = "B" if before.server_round % 2 else "A"
        updates = (_rotated(update, before.shared, factor, server.rotation) for update in updates)
    return Target(ROBUST[server.robust](updates, server.num_byzantine), {})


def _rotated(update: Update, reference: Arrays, factor: str, strength: float) -> Update:
    """R^T A and B R for the rotation R that brings one factor nearest to the reference: B A stays.

    Orthogonal Procrustes: with A A_ref^T = U S V^T (or B^T B_ref) it is R = U V^T; the last direction is
    turned round where that would be a reflection. At a strength l below 1 the orthogonal matrix nearest to
    (1 - l) I + l R takes its place.
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
    """Fill up the factors of clients of smaller rank with zeros, and take the means.

    The zeros count: a rank that few clients have shrinks by the weight of those that lack it. A rank that no
    client of this round has stays as it was.

    Paper: Cho et al., HetLoRA, arXiv 2401.06432. Differs: its padding alone, without the pruning of ranks and
    the weights by norm.
    """
    shapes = {key: value.shape for key, value in shared.items()}
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


def add_residual(residual: Arrays, added: Arrays) -> Arrays:
    """Stack what is added to the base onto what was added before: [B B'] [A; A'].

    Where that would take more ranks than the layer (d_out, d_in) can have, its product and an identity take
    their place: exact to the rounding of float32, and of min(d_out, d_in) ranks however many rounds follow.

    Args:
        residual: Factors by PEFT key; {} for nothing.
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
    """All updates, and n_k / n of each."""
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
