"""Combination: means worked out by hand."""

import numpy as np
import pytest

from fedsdr.server.combine import average
from fedsdr.server.guard import Update

A, B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"


def make(client: str, num_examples: int, a: list[list[float]], b: list[list[float]]) -> Update:
    arrays = {A: np.array(a, dtype=np.float32), B: np.array(b, dtype=np.float32)}
    return Update(client, arrays, num_examples, {})


def test_the_mean_is_weighted_by_the_numbers_of_examples():
    """Went wrong elsewhere: the weights were commented out, and it was still called FedAvg.

    n = 1 and 3, so 1/4 and 3/4: A = (4 + 3 * 8) / 4 = 7 and (0 - 3 * 4) / 4 = -3, B = (1 + 0) / 4.
    """
    target = average([make("a", 1, [[4.0, 0.0]], [[1.0]]), make("b", 3, [[8.0, -4.0]], [[0.0]])])
    assert target[A].tolist() == [[7.0, -3.0]]
    assert target[B].tolist() == [[0.25]]
    assert list(target) == [A, B]
    assert {array.dtype for array in target.values()} == {np.dtype(np.float32)}
    assert (target[A].shape, target[B].shape) == ((1, 2), (1, 1))


def test_the_mean_is_the_old_adapter_plus_the_weighted_changes():
    """As the paper writes it: R + sum of (n_k / n) dR_k, with n = 2, 3, 5."""
    rng = np.random.default_rng(0)
    old = rng.normal(size=(4, 6))
    changes = [rng.normal(size=(4, 6)) for _ in range(3)]
    counts = (2, 3, 5)
    updates = [make(str(n), n, old + change, [[0.0]]) for n, change in zip(counts, changes, strict=True)]
    expected = old + sum(n / 10 * change for n, change in zip(counts, changes, strict=True))
    np.testing.assert_allclose(average(updates)[A], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_examples", [1, 3, 7, 999_999_937])
def test_a_client_alone_gets_its_own_bits_back(num_examples: int):
    a = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    assert average([make("a", num_examples, a, [[1e-38]])])[A].tobytes() == a.tobytes()


def test_clients_that_agree_are_not_changed_by_rounding():
    """49 weights of 1/49 sum to one only in float64."""
    a = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    updates = [make(f"c{n:02}", 1, a, [[0.0]]) for n in range(49)]
    assert average(updates)[A].tobytes() == a.tobytes()


def test_small_changes_do_not_drown_in_large_ones():
    """1e8 + 1 - 1e8 is 0 in float32, 1 in float64."""
    values = [1e8, 1.0, -1e8]
    target = average([make(str(v), 1, [[v]], [[0.0]]) for v in values])
    assert target[A][0, 0] == pytest.approx(1 / 3)


def test_combining_changes_no_clients_arrays():
    update = make("a", 2, [[4.0]], [[1.0]])
    target = average([update, make("b", 2, [[0.0]], [[0.0]])])
    target[A] += 5
    assert update.arrays[A].tolist() == [[4.0]]
