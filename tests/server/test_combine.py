"""Combination: means worked out by hand, and law 10: each does to B A what its paper says."""

import numpy as np
import pytest

from fedsdr.config import Server
from fedsdr.server import combine
from fedsdr.server.combine import Before
from fedsdr.server.guard import Update
from fedsdr.server.reduce import Arrays

A, B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"


def before(updates: list[Update], server_round: int = 1) -> Before:
    """A server whose factors have the shapes of the first client's, and are zero."""
    return Before({key: np.zeros_like(value) for key, value in updates[0].arrays.items()}, server_round)


def average(updates: list[Update]) -> Arrays:
    return combine.average(updates, Server(), before(updates)).shared


def flexlora(updates: list[Update]) -> Arrays:
    return combine.flexlora(updates, Server(combination="flexlora"), before(updates)).shared


def make(client: str, num_examples: int, a: list[list[float]], b: list[list[float]]) -> Update:
    arrays = {A: np.array(a, dtype=np.float32), B: np.array(b, dtype=np.float32)}
    return Update(client, arrays, num_examples, {}, 0)


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


def drawn(num_clients: int, rank: int = 2, d_in: int = 7, d_out: int = 5) -> list[Update]:
    """Clients with 1, 2, 3, ... examples and random factors."""
    rng = np.random.default_rng(3)
    return [
        make(f"c{n}", n + 1, rng.normal(size=(rank, d_in)), rng.normal(size=(d_out, rank)))  # type: ignore[arg-type]
        for n in range(num_clients)
    ]


def product(arrays: Arrays) -> np.ndarray:
    return arrays[B].astype(np.float64) @ arrays[A].astype(np.float64)


@pytest.mark.parametrize("num_clients", [1, 2, 3, 6])
def test_flexlora_is_the_best_product_of_rank_r(num_clients: int):
    """Eckart and Young: no matrix of rank r is nearer to the mean of B A than its cut decomposition."""
    updates = drawn(num_clients)
    total = sum(u.num_examples for u in updates)
    wanted = sum(u.num_examples / total * product(u.arrays) for u in updates)
    u, s, vt = np.linalg.svd(wanted)
    best = u[:, :2] * s[:2] @ vt[:2]
    target = flexlora(updates)
    np.testing.assert_allclose(product(target), best, atol=1e-5)
    assert (target[A].shape, target[B].shape) == ((2, 7), (5, 2))
    if num_clients == 1:  # nothing is lost of a client alone
        np.testing.assert_allclose(product(target), product(updates[0].arrays), atol=1e-5)


def test_flexlora_of_factors_that_are_zero_is_zero():
    zero = [make(c, 1, np.ones((2, 7)), np.zeros((5, 2))) for c in "ab"]  # type: ignore[arg-type]
    assert not product(flexlora(zero)).any()


def test_the_plain_average_of_factors_is_not_the_average_of_products_but_that_of_ffa_is():
    """What FFA-LoRA is for: with one A, mean(B) A = mean(B A)."""
    updates = drawn(3)
    total = sum(u.num_examples for u in updates)
    wanted = sum(u.num_examples / total * product(u.arrays) for u in updates)
    assert not np.allclose(product(average(updates)), wanted, atol=0.1)
    a = updates[0].arrays[A]
    one_a = [Update(u.client, {A: a, B: u.arrays[B]}, u.num_examples, {}, 0) for u in updates]
    wanted = sum(u.num_examples / total * product(u.arrays) for u in one_a)
    only_b = [Update(u.client, {B: u.arrays[B]}, u.num_examples, {}, 0) for u in updates]
    np.testing.assert_allclose(product({A: a} | average(only_b)), wanted, atol=1e-6)


def test_flexlora_of_a_layer_narrower_than_the_rank_keeps_its_shapes_and_the_product():
    updates = [
        make(c, 1, np.random.default_rng(n).normal(size=(8, 6)), np.random.default_rng(n).normal(size=(4, 8)))  # type: ignore[arg-type]
        for n, c in enumerate("ab")
    ]
    target = flexlora(updates)
    assert (target[A].shape, target[B].shape) == ((8, 6), (4, 8))
    wanted = sum(product(u.arrays) for u in updates) / 2
    np.testing.assert_allclose(product(target), wanted, atol=1e-5)
