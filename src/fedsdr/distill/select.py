"""Selects the responses to rewrite: all, some domains, or representatives of a client's examples.

Nothing here reads test data. `distill.only = "likelier"` does not select before rewriting; it is a check
after it (`likelier`).

Paper: Qin et al., "Federated Data-Efficient Instruction Tuning for Large Language Models" (FedHDS), Findings
of ACL 2025, arXiv 2410.10926 (clusters of hidden states by HDBSCAN, and one example for each). Differs: only
the selection within a client is implemented, not the server's selection across clients, which would send it
information about the clusters; states are means over the response's tokens at the last layer, while the paper
fuses the layers by t-SNE; unselected examples stay raw, while the paper drops them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsdr.config import Distill
from fedsdr.data.conversation import encode_all
from fedsdr.data.examples import Example
from fedsdr.model.adapters import LoraModel
from fedsdr.model.loss import mean_losses, mean_states

SMALLEST = 5
"""Minimum number of examples in a cluster; scikit-learn's default."""


def select(model: LoraModel, examples: Sequence[Example], distill: Distill, longest: int) -> list[int]:
    """Indices of the examples whose responses are rewritten, in order (`distill.only`)."""
    if isinstance(distill.only, tuple):
        return [place for place, example in enumerate(examples) if example.domain in distill.only]
    if distill.only != "representative":
        return list(range(len(examples)))
    with model.inference(()):
        texts = encode_all(model.base.tokenizer, examples, longest)
        states = mean_states(model.base, texts, distill.batch_size)
    return medoids(states)


def medoids(states: NDArray[np.float32]) -> list[int]:
    """Indices of the rows (num, d) nearest to their cluster's mean; all rows if there is no cluster."""
    from sklearn.cluster import HDBSCAN  # rarely needed, and slow to import

    if len(states) < SMALLEST:
        return list(range(len(states)))
    labels = HDBSCAN(min_cluster_size=SMALLEST, copy=True).fit_predict(states)
    chosen = []
    for label in range(labels.max() + 1):
        rows = np.flatnonzero(labels == label)
        distances = np.linalg.norm(states[rows] - states[rows].mean(axis=0), axis=1)
        chosen.append(int(rows[distances.argmin()]))
    return sorted(chosen) or list(range(len(states)))


def likelier(
    model: LoraModel, examples: Sequence[Example], texts: Sequence[str], batch_size: int, longest: int
) -> list[bool]:
    """Whether the base's mean log p per token is higher for the rewriting than for the true response."""
    with model.inference(()):
        rewritten, true = (
            mean_losses(model.base, encode_all(model.base.tokenizer, examples, longest, side), batch_size)
            for side in (texts, None)
        )
    return [new < old for new, old in zip(rewritten, true, strict=True)]
