"""Which examples form a batch, in which order, and the padded arrays of a batch.

Lengths are padded to few sizes: batches of ever new shapes make allocators and compilers grow.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsdr.data.conversation import Conversation

PAD_TO = 32
"""Sequence lengths are multiples of this."""


@dataclass(frozen=True)
class Batch:
    """Conversations of one forward pass.

    The hidden state at `positions[i]` of the flattened (batch * sequence) states predicts
    `targets[i]`, a response token.
    """

    ids: NDArray[np.int64]
    """Token ids (batch, sequence), padded on the right."""
    positions: NDArray[np.int64]
    """Where response tokens are predicted (num_response_tokens,)."""
    targets: NDArray[np.int64]
    """The response tokens (num_response_tokens,)."""


def data_order(num_examples: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of indices without end: one shuffled epoch after the other.

    A batch may reach into the next epoch, so every step has `batch_size` examples.
    """
    rng = random.Random(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            epoch = list(range(num_examples))
            rng.shuffle(epoch)
            waiting += epoch
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def collate(conversations: Sequence[Conversation]) -> Batch:
    """Pad conversations on the right with token 0 and list where their responses are predicted.

    Under causal attention nothing attends to padding on its right, so no mask is needed.
    """
    longest = max(len(conversation.ids) for conversation in conversations)
    width = -(-longest // PAD_TO) * PAD_TO
    ids = np.zeros((len(conversations), width), dtype=np.int64)
    positions: list[int] = []
    targets: list[int] = []
    for row, conversation in enumerate(conversations):
        ids[row, : len(conversation.ids)] = conversation.ids
        start, end = conversation.prompt_length, len(conversation.ids)
        positions += range(row * width + start - 1, row * width + end - 1)
        targets += conversation.ids[start:]
    return Batch(ids, np.array(positions, dtype=np.int64), np.array(targets, dtype=np.int64))


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Group indices into batches of like lengths, longest first, so that little is padding.

    The longest first: if a batch is too large for the memory, it shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
