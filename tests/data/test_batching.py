"""Batches: every example is seen equally often, and padding changes nothing."""

from collections import Counter
from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.data.batching import PAD_TO, by_length, collate, data_order
from fedsdr.data.conversation import Conversation


@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 99), st.integers(1, 12))
def test_examples_are_seen_equally_often_in_whole_batches(num: int, size: int, seed: int, steps: int):
    """After any number of steps no example is more than one epoch ahead of another."""
    batches = list(islice(data_order(num, size, seed), steps))
    assert {len(batch) for batch in batches} == {size}
    seen = Counter(index for batch in batches for index in batch)
    counts = [seen[index] for index in range(num)]
    assert sum(counts) == steps * size
    assert max(counts) - min(counts) <= 1


def test_the_order_is_the_seeds_and_a_new_one_in_each_epoch():
    def first_epochs(seed: int) -> list[list[int]]:
        return list(islice(data_order(50, 50, seed), 3))

    assert first_epochs(1) == first_epochs(1)
    assert first_epochs(1) != first_epochs(2)
    assert len({tuple(epoch) for epoch in first_epochs(1)}) == 3


def test_each_position_predicts_the_response_token_that_follows_it():
    """Prompt 7 8, response 3 4 2: the states of 8, 3 and 4 predict 3, 4 and 2."""
    batch = collate([Conversation((7, 8, 3, 4, 2), 2), Conversation((9, 5), 1)])
    assert batch.ids.shape == (2, PAD_TO)
    assert batch.positions.tolist() == [1, 2, 3, PAD_TO]
    assert batch.targets.tolist() == [3, 4, 2, 5]
    assert batch.ids.ravel()[batch.positions].tolist() == [8, 3, 4, 9]
    assert batch.ids[0].tolist() == [7, 8, 3, 4, 2] + [0] * (PAD_TO - 5)
    assert batch.ids.dtype == batch.positions.dtype == batch.targets.dtype == np.int64


def test_batches_come_in_few_widths():
    """New shapes at every step make allocators grow; 1 to 64 tokens fill two widths."""
    widths = [collate([Conversation(tuple(range(length)), 1)]).ids.shape[1] for length in range(2, 65)]
    assert widths == [32] * 31 + [64] * 32


@given(st.lists(st.integers(1, 30), max_size=30), st.integers(1, 7))
def test_batches_of_like_lengths_hold_every_index_once_the_longest_first(lengths: list[int], size: int):
    plan = by_length(lengths, size)
    order = [index for batch in plan for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    assert all(len(batch) == size for batch in plan[:-1])
    assert [index for index in order if lengths[index] == 5] == [i for i, n in enumerate(lengths) if n == 5]
