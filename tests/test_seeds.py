"""Seeds: one for each choice of a run, the same on every machine, none shared by accident."""

import hashlib
import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.seeds import seed_for

PATHS = st.tuples(st.integers(0, 3), st.lists(st.integers(0, 3) | st.text("ab/:1", max_size=4), max_size=3))


@given(PATHS, PATHS)
def test_two_choices_share_a_seed_only_if_they_are_the_same_choice(a, b):
    """Text and numbers that look alike, and names with the separator in them, are different choices."""
    assert (seed_for(a[0], *a[1]) == seed_for(b[0], *b[1])) == (a == b)


def test_a_name_with_a_slash_is_not_two_names():
    assert seed_for(0, "a/str:b") != seed_for(0, "a", "b")


def test_the_seed_is_the_same_in_every_process_and_version():
    """Half of the 64 bits that blake2b makes of the path; Python's own hash differs between processes."""
    bits = hashlib.blake2b(b"int:0/str:client/str:finance/str:round/int:7", digest_size=8).hexdigest()
    assert seed_for(0, "client", "finance", "round", 7) == int(bits, 16) // 2 == 2814419269990296313


@given(st.integers(0, 2**64), st.text())
def test_every_generator_takes_the_seed(run_seed: int, name: str):
    seed = seed_for(run_seed, name)
    assert 0 <= seed < 2**63
    random.Random(seed)
    np.random.default_rng(seed)
    torch.Generator().manual_seed(seed)
