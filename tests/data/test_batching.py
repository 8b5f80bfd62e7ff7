"""Batches: every example is seen equally often, and padding changes nothing."""

from collections import Counter
from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.data.batching import PAD_TO, by_length, collate, data_order, in_batches
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


def test_in_one_row_each_conversation_begins_where_the_last_ended():
    """The same two: five tokens, two tokens, and padding that is counted to the second."""
    batch = collate([Conversation((7, 8, 3, 4, 2), 2), Conversation((9, 5), 1)], flat=True)
    assert batch.ids.tolist() == [[7, 8, 3, 4, 2, 9, 5] + [0] * (PAD_TO - 7)]
    assert batch.lengths == (5, PAD_TO - 5)
    assert batch.positions.tolist() == [1, 2, 3, 5]
    assert batch.targets.tolist() == [3, 4, 2, 5]


@given(st.lists(st.integers(2, 70), min_size=1, max_size=6), st.booleans())
def test_every_response_token_is_predicted_from_the_token_before_it(lengths: list[int], flat: bool):
    conversations = [Conversation(tuple(range(100 * n, 100 * n + k)), 1) for n, k in enumerate(lengths, 1)]
    batch = collate(conversations, flat)
    assert batch.targets.tolist() == [token for c in conversations for token in c.ids[1:]]
    assert (batch.ids.ravel()[batch.positions] == batch.targets - 1).all()
    assert batch.ids.size % PAD_TO == 0
    if flat:
        assert sum(batch.lengths) == batch.ids.size < sum(lengths) + PAD_TO


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


@given(st.lists(st.integers(1, 30), max_size=30), st.integers(1, 7), st.sampled_from(["", "rows"]))
def test_work_in_batches_returns_each_item_its_own_result(lengths: list[int], size: int, unit: str):
    batches: list[list[int]] = []

    def work(some: list[int]) -> list[int]:
        batches.append(some)
        return [item + 100 for item in some]

    items = list(range(len(lengths)))
    assert in_batches(items, lengths, size, work, unit) == [item + 100 for item in items]
    assert batches == by_length(lengths, size)
