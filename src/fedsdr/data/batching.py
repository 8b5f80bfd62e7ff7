"""Which examples form a batch, in which order, and the arrays of a batch.

Rows are padded to a few fixed widths: new shapes in every batch would make the allocator's memory grow.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedsdr.data.conversation import Conversation
from fedsdr.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")
PAD_TO = 32
"""Rows of token ids are multiples of this long."""


@dataclass(frozen=True)
class Batch:
    """Conversations of one forward pass, one per row or all in one row.

    The hidden state at `positions[i]` of the flattened (rows * width) states predicts `targets[i]`, a
    response token.
    """

    ids: NDArray[np.int64]
    """Token ids (rows, width)."""
    positions: NDArray[np.int64]
    """Where response tokens are predicted (num_response_tokens,)."""
    targets: NDArray[np.int64]
    """The response tokens (num_response_tokens,)."""
    lengths: tuple[int, ...] = ()
    """Lengths of the conversations that share the one row, with trailing padding counted to the last; empty
    if each conversation has its own row."""


def data_order(num_examples: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of indices without end: one shuffled epoch after another.

    A batch may continue into the next epoch, so every step has `batch_size` examples.
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


def row_width(used: int) -> int:
    """Padded width of a row that holds this many tokens."""
    return -(-used // PAD_TO) * PAD_TO


def collate(conversations: Sequence[Conversation], flat: bool = False) -> Batch:
    """Collate conversations into arrays and list the positions where their response tokens are predicted.

    Args:
        conversations: At least one.
        flat: Put all conversations into one row without padding between them, for attention that keeps them
            apart; a quarter to a half of a padded batch of random examples is padding. Otherwise each
            conversation is a row, padded on the right with token 0. Under causal attention no token attends
            to padding on its right, so no mask is needed.
    """
    lengths = [len(conversation.ids) for conversation in conversations]
    used = sum(lengths) if flat else max(lengths)
    width = row_width(used)
    starts = np.cumsum([0, *lengths[:-1]]) if flat else width * np.arange(len(lengths))
    ids = np.zeros((1 if flat else len(lengths), width), dtype=np.int64)
    positions: list[int] = []
    targets: list[int] = []
    for conversation, begin in zip(conversations, starts.tolist(), strict=True):
        end = begin + len(conversation.ids)
        ids.ravel()[begin:end] = conversation.ids
        positions += range(begin + conversation.prompt_length - 1, end - 1)
        targets += conversation.ids[conversation.prompt_length :]
    lengths[-1] += width - used
    return Batch(
        ids,
        np.array(positions, dtype=np.int64),
        np.array(targets, dtype=np.int64),
        tuple(lengths) if flat else (),
    )


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Group indices into batches of similar lengths, longest first, to keep padding small.

    The longest comes first, so that a batch too large for the memory fails immediately.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def in_batches(
    items: Sequence[Item],
    lengths: Sequence[int],
    batch_size: int,
    work: Callable[[list[Item]], Iterable[Result]],
    unit: str = "",
) -> list[Result]:
    """Work on batches of items of similar lengths; return the results in the order of the items.

    Args:
        items: In any order.
        lengths: The length of each item, for `by_length`.
        batch_size: Most items in a batch.
        work: Returns one result for each item of a batch.
        unit: Name of the items, to show progress.
    """
    plan: Iterable[list[int]] = by_length(lengths, batch_size)
    if unit:
        plan = track(plan, unit, [len(rows) for rows in plan])
    found: dict[int, Result] = {}
    for rows in plan:
        found |= zip(rows, work([items[row] for row in rows]), strict=True)
    return [found[row] for row in range(len(items))]
