"""Combination: the clients' LoRA factors become one target.

The functions behind `tables.COMBINATIONS`. Updates come in the order of client ids, so that the
order of arrival changes no byte.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from fedsdr.client.wire import Arrays
from fedsdr.config import Server
from fedsdr.server.guard import Update
from fedsdr.server.reduce import REDUCE


def average(updates: Iterable[Update], server: Server) -> Arrays:
    """Reduce each factor for itself; with the mean R <- sum over k of (n_k / n) R_k.

    Equal to R + sum of (n_k / n) dR_k, as the paper writes it, since the weights sum to one. The
    mean of A and of B is not the mean of B A; combinations that mend this are other rows. With "ffa"
    only B comes here, and the mean of B A is the mean of B times the A that all hold.

    Paper: FedSDR, section 4; Zhang et al., FedIT, arXiv 2305.05644; Sun et al., FFA-LoRA, arXiv
    2403.12313.

    Args:
        updates: At least one, ordered by client id.
        server: Says which reduction.

    Returns:
        A (rank, d_in) and B (d_out, rank) by PEFT key, float32.
    """
    return REDUCE[server.reduction](updates, server.num_byzantine)


def flexlora(updates: Iterable[Update], server: Server) -> Arrays:
    """Cut the mean product to the clients' rank r: M = sum of (n_k / n) B_k A_k ~ U_r S_r V_r^T.

    New B = U_r sqrt(S_r) and A = sqrt(S_r) V_r^T: the best approximation of M of rank r (Eckart and
    Young). M (d_out, d_in) is never made: it is the product of two factors of rank K r, whose QR
    decompositions leave a singular value decomposition of (K r, K r).

    Paper: Bai et al., FlexLoRA, arXiv 2402.11505, section 3. Differs: all clients have one rank here;
    how the singular values are divided between A and B is open there.
    """
    del server
    updates = list(updates)
    total = sum(update.num_examples for update in updates)
    weights = [update.num_examples / total for update in updates]
    target: Arrays = {}
    for key_a in (key for key in updates[0].arrays if ".lora_A." in key):
        key_b = key_a.replace(".lora_A.", ".lora_B.")
        rank = updates[0].arrays[key_a].shape[0]
        b = np.concatenate(
            [w * u.arrays[key_b].astype(np.float64) for w, u in zip(weights, updates, strict=True)], axis=1
        )
        a = np.concatenate([u.arrays[key_a].astype(np.float64) for u in updates], axis=0)
        (q_b, r_b), (q_a, r_a) = np.linalg.qr(b), np.linalg.qr(a.T)
        u, s, vt = np.linalg.svd(r_b @ r_a.T)
        kept = min(rank, len(s))  # fewer where the layer is narrower than the rank; the rest stays zero
        root = np.sqrt(s[:kept])
        target[key_a] = np.zeros_like(updates[0].arrays[key_a])
        target[key_b] = np.zeros_like(updates[0].arrays[key_b])
        target[key_a][:kept] = root[:, None] * (vt[:kept] @ q_a.T)
        target[key_b][:, :kept] = q_b @ u[:, :kept] * root
    return target


COMBINE: Mapping[str, Callable[[Iterable[Update], Server], Arrays]] = {
    "average": average,
    "ffa": average,
    "flexlora": flexlora,
}
