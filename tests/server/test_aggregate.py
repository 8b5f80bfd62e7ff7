"""Aggregation: means worked out by hand, and invariant 10: each does to B A what its paper says."""

from typing import Any

import numpy as np
import pytest

from fedsdr.config import Server
from fedsdr.messages.wire import cut
from fedsdr.server import aggregate
from fedsdr.server.aggregate import Before, add_residual
from fedsdr.server.robust import Arrays
from fedsdr.server.validate import Update

A, B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"


def zeros(updates: list[Update]) -> Arrays:
    """A server's factors of the shapes of the first client's, all zero."""
    return {key: np.zeros_like(value) for key, value in updates[0].arrays.items()}


def average(updates: list[Update]) -> Arrays:
    return aggregate.average(updates, Server()).shared


def flexlora(updates: list[Update]) -> Arrays:
    return aggregate.flexlora(updates, zeros(updates)).shared


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


def test_aggregating_changes_no_clients_arrays():
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


def mean_product(updates: list[Update]) -> np.ndarray:
    """Sum of (n_k / n) B_k A_k in float64."""
    total = sum(u.num_examples for u in updates)
    return sum(u.num_examples / total * product(u.arrays) for u in updates)


def of_ranks(*ranks: int) -> list[Update]:
    """Clients of those ranks, on a layer (5, 7)."""
    rng = np.random.default_rng(5)
    return [
        make(f"c{n}", n + 1, rng.normal(size=(rank, 7)), rng.normal(size=(5, rank)))  # type: ignore[arg-type]
        for n, rank in enumerate(ranks)
    ]


def test_flexlora_of_clients_of_several_ranks_is_the_best_of_the_server_s_and_of_each_client_s():
    """A client uses the first ranks of the broadcast: they are its own best approximation."""
    updates = of_ranks(3, 1, 2)
    u, s, vt = np.linalg.svd(mean_product(updates))
    target = flexlora(updates)
    for rank in (3, 2, 1):
        np.testing.assert_allclose(product(cut(target, rank)), u[:, :rank] * s[:rank] @ vt[:rank], atol=1e-5)


def test_flexlora_of_clients_with_fewer_ranks_together_than_the_server_leaves_the_others_able_to_learn():
    """Server of rank 3, one client of rank 1: nothing is lost, and of the other ranks A stays and B is zero.

    Were both zero, neither would have a gradient in any later round.
    """
    (alone,) = of_ranks(1)
    server = {A: np.full((3, 7), 2.0, np.float32), B: np.ones((5, 3), np.float32)}
    target = aggregate.flexlora([alone], server).shared
    assert (target[A].shape, target[B].shape) == ((3, 7), (5, 3))
    np.testing.assert_allclose(product(target), product(alone.arrays), atol=1e-5)
    assert (target[A][1:] == 2).all() and not target[B][:, 1:].any()


@pytest.mark.parametrize("ranks", [(2, 2, 2), (2, 1, 3), (2,)])
def test_flora_adds_the_mean_product_exactly_and_leaves_the_shared_factors(ranks: tuple[int, ...]):
    updates = of_ranks(*ranks)
    target = aggregate.flora(updates, zeros(updates))
    np.testing.assert_allclose(product(target.added), mean_product(updates), rtol=1e-6, atol=1e-6)
    assert (target.added[A].shape, target.added[B].shape) == ((sum(ranks), 7), (5, sum(ranks)))
    assert not product(target.shared).any()


@pytest.mark.parametrize("num_clients", [1, 2, 3, 6])
def test_fedex_takes_the_means_and_adds_exactly_what_they_leave_out(num_clients: int):
    updates = drawn(num_clients)
    target = aggregate.fedex(updates, zeros(updates))
    means = average(updates)
    assert all(target.shared[key].tobytes() == means[key].tobytes() for key in means)
    if num_clients == 1:
        assert target.added == {}
        return
    np.testing.assert_allclose(
        product(target.shared) + product(target.added), mean_product(updates), rtol=1e-6, atol=1e-6
    )
    assert len(target.added[A]) == 2 * (num_clients - 1)
    assert not np.allclose(
        product(target.shared), mean_product(updates), atol=0.01
    )  # there is something to add


@pytest.mark.parametrize(("d_in", "d_out"), [(7, 5), (5, 7)])
def test_what_is_added_over_many_rounds_is_the_sum_and_never_wider_than_the_layer(d_in: int, d_out: int):
    rng = np.random.default_rng(6)
    residual: Arrays = {}
    wanted = np.zeros((d_out, d_in))
    for _ in range(10):
        added = {A: rng.normal(size=(2, d_in)), B: rng.normal(size=(d_out, 2))}
        added = {key: value.astype(np.float32) for key, value in added.items()}
        wanted += product(added)
        residual = add_residual(residual, added)
        np.testing.assert_allclose(product(residual), wanted, rtol=1e-5, atol=1e-5)
        assert {value.dtype for value in residual.values()} == {np.dtype(np.float32)}
        assert len(residual[A]) == residual[B].shape[1] <= min(d_in, d_out)
    assert add_residual(residual, {}) is residual


def rotated(update: Update, q: np.ndarray) -> Update:
    """B Q and Q^T A, whose product is the same."""
    return make(update.client, update.num_examples, q.T @ update.arrays[A], update.arrays[B] @ q)


def rotations(num: int, rank: int) -> list[np.ndarray]:
    rng = np.random.default_rng(8)
    found = [np.linalg.qr(rng.normal(size=(rank, rank)))[0] for _ in range(num)]
    return [q * np.where(np.arange(rank) == 0, np.sign(np.linalg.det(q)), 1) for q in found]


def fedrot(updates: list[Update], server_round: int, **server: Any) -> Arrays:
    """Aggregated towards the factors of a client that is not among them."""
    reference = drawn(4, rank=3)[3].arrays
    settings = Server(aggregation="fedrot", **server)
    return aggregate.fedrot(updates, settings, Before(reference, server_round)).shared


@pytest.mark.parametrize("server_round", [2, 3])
def test_fedrot_is_the_same_however_a_client_s_factors_are_rotated(server_round: int):
    updates = drawn(3, rank=3)
    turned = [rotated(u, q) for u, q in zip(updates, rotations(3, 3), strict=True)]
    ours, theirs = fedrot(updates, server_round), fedrot(turned, server_round)
    for key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], atol=1e-5)
    assert not np.allclose(average(updates)[A], average(turned)[A], atol=0.1)  # the plain average is not


def test_fedrot_of_clients_that_differ_by_rotations_alone_loses_nothing_of_their_product():
    (first,) = drawn(1, rank=3)
    updates = [first, *(rotated(first, q) for q in rotations(3, 3))]
    np.testing.assert_allclose(product(fedrot(updates, 2)), product(first.arrays), atol=1e-5)
    assert not np.allclose(product(average(updates)), product(first.arrays), atol=0.1)


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("server_round", [2, 3])
def test_fedrot_keeps_a_client_s_product_whatever_its_strength(server_round: int, strength: float):
    """One client alone: its factors are rotated, and B A is as it was."""
    reference, update = drawn(2, rank=3)
    server = Server(aggregation="fedrot", rotation=strength)
    target = aggregate.fedrot([update], server, Before(reference.arrays, server_round)).shared
    np.testing.assert_allclose(product(target), product(update.arrays), atol=1e-5)
    factor = "A" if server_round == 2 else "B"
    key = {"A": A, "B": B}[factor]
    before_, after = (
        np.linalg.norm(arrays[key] - reference.arrays[key]) for arrays in (update.arrays, target)
    )
    assert after < before_


def test_fedrot_rotates_by_half_at_half_strength_and_never_reflects():
    """In the plane a rotation by 80 degrees is undone by one of -80, at strength 1/2 by one of -40."""
    angle = np.deg2rad(80)
    q = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    reference = make("r", 1, np.eye(2), np.eye(2))  # type: ignore[arg-type]
    server = Server(aggregation="fedrot", rotation=0.5)
    target = aggregate.fedrot([rotated(reference, q)], server, Before(reference.arrays, 2)).shared
    half = np.array([[np.cos(angle / 2), -np.sin(angle / 2)], [np.sin(angle / 2), np.cos(angle / 2)]])
    np.testing.assert_allclose(target[B], half, atol=1e-6)
    mirrored = rotated(reference, np.diag([1.0, -1.0]))
    server = Server(aggregation="fedrot")
    target = aggregate.fedrot([mirrored], server, Before(reference.arrays, 2)).shared
    assert np.linalg.det(target[B]) == pytest.approx(-1)  # as it came; a rotation changes no sign


@pytest.mark.parametrize(("reference", "rounds"), [("alternate", (2, 3)), ("A", (2, 2)), ("B", (3, 3))])
def test_fedrot_aligns_a_in_even_rounds_and_b_in_odd_ones_unless_told(
    reference: str, rounds: tuple[int, int]
):
    updates = drawn(3, rank=3)
    for server_round, alike in zip((2, 3), rounds, strict=True):
        got, plain = fedrot(updates, server_round, rotation_reference=reference), fedrot(updates, alike)
        assert all(np.array_equal(got[key], plain[key]) for key in got)
    assert not np.allclose(fedrot(updates, 2)[A], fedrot(updates, 3)[A])
    first = fedrot(updates, 1)  # the broadcast B is zero: the plain average
    assert all(np.array_equal(first[key], value) for key, value in average(updates).items())


def test_zeropad_by_hand():
    """Ranks 2 and 1, n = 1 and 3: A = ((4 + 3 * 8) / 4, (2 + 3 * 0) / 4), B = (1 / 4, (1 + 0) / 4)."""
    updates = [make("a", 1, [[4.0], [2.0]], [[1.0, 1.0]]), make("b", 3, [[8.0]], [[0.0]])]
    target = aggregate.zeropad(updates, zeros(updates)).shared
    assert target[A].tolist() == [[7.0], [0.5]]
    assert target[B].tolist() == [[0.25, 0.25]]
    assert (updates[1].arrays[A].shape, {v.dtype for v in target.values()}) == ((1, 1), {np.dtype("float32")})


def test_zeropad_leaves_ranks_that_no_client_of_the_round_has_as_they_were():
    """Server of rank 2, one client of rank 1 answers: other clients trained the second rank in other rounds."""
    server = {A: np.array([[1.0], [2.0]], np.float32), B: np.array([[3.0, 4.0]], np.float32)}
    target = aggregate.zeropad([make("b", 3, [[8.0]], [[5.0]])], server).shared
    assert target[A].tolist() == [[8.0], [2.0]]
    assert target[B].tolist() == [[5.0, 4.0]]
