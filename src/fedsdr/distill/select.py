"""Which responses are rewritten: all, those of some domains, or those that a client's examples stand for.

Nothing here reads test data. `distill.only = "likelier"` is no choice before rewriting, but a check after it
(`likelier`).

Paper: Qin et al., "Federated Data-Efficient Instruction Tuning for Large Language Models" (FedHDS), Findings
of ACL 2025, arXiv 2410.10926 (clusters of hidden states by HDBSCAN, and one example for each). Differs: only
the choice within a client is here, and none by the server over clients, which would be sent what the clusters
are; states are means over the response's tokens at the last layer, where the paper fuses the layers by t-SNE;
examples that are not chosen stay raw, where the paper leaves them out.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsdr.config import Distill
from fedsdr.data.conversation import Conversation, encode
from fedsdr.data.examples import Example
from fedsdr.model.adapters import LoraModel
from fedsdr.model.loss import mean_losses, mean_states

SMALLEST = 5
"""Examples of a cluster, at least; scikit-learn's default."""


def select(model: LoraModel, examples: Sequence[Example], distill: Distill, longest: int) -> list[int]:
    """Places of the examples whose responses are rewritten, in order (`distill.only`)."""
    if isinstance(distill.only, tuple):
        return [place for place, example in enumerate(examples) if example.domain in distill.only]
    if distill.only != "representative":
        return list(range(len(examples)))
    with model.inference(()):
        texts = _encoded(model, examples, [example.response for example in examples], longest)
        states = mean_states(model.base, texts, distill.batch_size)
    return medoids(states)


def medoids(states: NDArray[np.float32]) -> list[int]:
    """Rows (num, d) nearest to the mean of their cluster, one for each; all where there is no cluster."""
    from sklearn.cluster import HDBSCAN  # seldom needed, and slow to load

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
    """Whether the base finds a token of the rewriting likelier than one of the true response, on average."""
    with model.inference(()):
        rewritten, true = (
            mean_losses(model.base, _encoded(model, examples, side, longest), batch_size)
            for side in (texts, [example.response for example in examples])
        )
    return [new < old for new, old in zip(rewritten, true, strict=True)]


def _encoded(
    model: LoraModel, examples: Sequence[Example], texts: Sequence[str], longest: int
) -> list[Conversation]:
    return [
        encode(model.base.tokenizer, example, text, longest)
        for example, text in zip(examples, texts, strict=True)
    ]
