"""The functions of secure aggregation: published vectors, exact sums, shares that say nothing, masks that hide."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from fedsdr.messages import secure_sum
from fedsdr.messages.privacy import clip
from fedsdr.messages.secure_sum import PRIME, RANGE, SHARE_BYTES, Secrets

NAMES = ("a", "b", "c", "d", "e")
OWN = {
    name: Secrets(*(bytes([7 * place + part] * 32) for part in range(3))) for place, name in enumerate(NAMES)
}
PUBLIC = {name: secure_sum.public(own.mask) for name, own in OWN.items()}


def masked(name: str, values: np.ndarray, about: bytes = b"round") -> np.ndarray:
    others = {other: key for other, key in PUBLIC.items() if other != name}
    return secure_sum.masked(values, name, OWN[name], others, about)


def vectors(size: int = 50) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.integers(0, 2**32, size, np.uint32) for name in NAMES}


def test_keys_and_masks_are_those_of_the_published_vectors():
    """RFC 7748, 6.1 (X25519); RFC 8439, A.1, test vector 1 (ChaCha20), as little-endian words."""
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    assert (
        secure_sum.public(alice).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    )
    stream = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert secure_sum.expand(bytes(32), 8).tobytes().hex() == stream


def test_every_bit_of_a_secret_changes_its_mask():
    masks = {secure_sum.expand((1 << bit).to_bytes(32), 4).tobytes() for bit in range(256)}
    assert len(masks) == 256


def test_the_sum_is_exact_for_every_set_of_lost_clients():
    x = vectors()
    y = {name: masked(name, x[name]) for name in NAMES}
    for num_lost in range(len(NAMES)):
        for lost in combinations(NAMES, num_lost):
            alive = [name for name in NAMES if name not in lost]
            total = np.zeros(50, np.uint32)
            for name in reversed(alive):
                total += y[name]
                total -= secure_sum.expand(OWN[name].seed, 50)
            for name in lost:
                keys = {other: PUBLIC[other] for other in alive}
                secure_sum.add_pairwise(total, name, OWN[name].mask, keys, b"round")
            assert (total == sum((x[name] for name in alive), np.zeros(50, np.uint32))).all()


def test_clients_with_different_rounds_have_masks_that_do_not_cancel():
    x = vectors(2000)
    total = masked("a", x["a"], b"another model")
    for name in NAMES[1:]:
        total = total + masked(name, x[name])
    for name in NAMES:
        total = total - secure_sum.expand(OWN[name].seed, 2000)
    assert (total == sum(x.values(), np.zeros(2000, np.uint32))).mean() < 0.01


def test_all_vectors_of_one_sum_leave_the_same_transcripts_for_some_masks():
    """Shift each mask by the difference of the vectors: the shifts cancel, so the masks are as likely as before."""
    x, rng = vectors(), np.random.default_rng(2)
    other = {name: rng.integers(0, 2**32, 50, np.uint32) for name in NAMES[1:]}
    other["a"] = sum(x.values(), np.zeros(50, np.uint32)) - sum(other.values(), np.zeros(50, np.uint32))
    shifts = {name: masked(name, other[name]) - masked(name, x[name]) for name in NAMES}
    assert all((shifts[name] == other[name] - x[name]).all() for name in NAMES)
    assert not sum(shifts.values(), np.zeros(50, np.uint32)).any()


def test_masked_numbers_are_uniform_whatever_they_hide():
    counts = np.bincount(masked("b", np.zeros(256_000, np.uint32)) >> 24, minlength=256)
    assert chisquare(counts).pvalue > 1e-6
    low = np.bincount(masked("b", np.full(256_000, 5, np.uint32)) & 255, minlength=256)
    assert chisquare(low).pvalue > 1e-6


@given(st.binary(min_size=32, max_size=32), st.integers(3, 12), st.randoms(use_true_random=False))
def test_a_threshold_of_shares_restores_a_secret(secret: bytes, num: int, random):
    least = secure_sum.threshold(num)
    assert 3 * least > 2 * num
    shares = dict(enumerate(secure_sum.split(secret, num, least), start=1))
    chosen = random.sample(sorted(shares), least)
    assert secure_sum.join({x: shares[x] for x in chosen}) == secret


def test_one_share_less_fits_every_secret():
    """For any other secret there is a last share with which the ones that are there restore it."""
    shares = dict(enumerate(secure_sum.split(bytes(range(32)), 4, 3), start=1))
    known = {1: shares[1], 3: shares[3]}
    at_zero = sum(
        int.from_bytes(share) * math.prod(o * pow(o - x, -1, PRIME) for o in (1, 3, 4) if o != x)
        for x, share in known.items()
    )
    weight = math.prod(o * pow(o - 4, -1, PRIME) for o in (1, 3))
    for secret in (bytes(32), b"\xff" * 32, b"any other secret of 32 bytes ok."):
        last = (int.from_bytes(secret) - at_zero) * pow(weight, -1, PRIME) % PRIME
        assert secure_sum.join(known | {4: last.to_bytes(SHARE_BYTES)}) == secret


def test_shares_of_no_secret_are_an_error():
    shares = dict(enumerate(secure_sum.split(bytes(32), 4, 3), start=1))
    with pytest.raises(ValueError, match="no secret"):
        secure_sum.join({1: shares[1], 2: shares[3], 3: shares[2]})


@given(st.floats(1e-3, 1e3), st.integers(3, 200), st.integers(1, 5000), st.integers(0, 9))
def test_rounding_takes_no_change_beyond_its_clip(most: float, num: int, size: int, seed: int):
    change = np.random.default_rng(seed).normal(size=size) * 10 * most
    bound = secure_sum.bound_of(most, num)
    clipped = clip(change, secure_sum.room_for_rounding(most, num, size))
    left = secure_sum.decode(secure_sum.encode(clipped, 1.0, bound), bound, num)
    assert np.linalg.norm(left) <= most
    assert np.linalg.norm(left) > 0.999 * min(most, np.linalg.norm(change))


def test_the_largest_changes_of_all_clients_do_not_wrap():
    weights = secure_sum.weights_of({"a": 1, "b": 2, "c": 1000}, 0)
    largest = np.array([secure_sum.LARGEST, -secure_sum.LARGEST])
    bound = secure_sum.bound_of(None, 3)
    total = sum((secure_sum.encode(largest, w, bound) for w in weights.values()), np.zeros(2, np.uint32))
    assert np.allclose(secure_sum.decode(total, bound, 3), largest, atol=3 * bound / RANGE)
    central = secure_sum.bound_of(0.7, 100)
    total = sum(
        (secure_sum.encode(np.array([0.7]), 1.0, central) for _ in range(100)), np.zeros(1, np.uint32)
    )
    assert secure_sum.decode(total, central, 100) == pytest.approx(70, abs=100 * central / RANGE)


def test_a_sum_of_something_else_is_out_of_range():
    with pytest.raises(ValueError, match="out of range"):
        secure_sum.decode(secure_sum.expand(bytes(32), 50), 8.0, 3)


def test_a_cap_of_the_weights_is_that_of_the_plain_mean():
    assert secure_sum.weights_of({"a": 1, "b": 3}, 0) == {"a": 0.25, "b": 0.75}
    assert secure_sum.weights_of({"a": 1, "b": 10**9}, 3) == {"a": 0.25, "b": 0.75}


def test_a_list_is_read_as_it_was_written_in_the_order_of_names():
    cards = {name: secure_sum.Card(bytes([n] * 32), bytes(32), n, b"signed") for n, name in enumerate("ba")}
    assert secure_sum.read_roll(secure_sum.write_roll(cards, 5)) == ({"a": cards["a"], "b": cards["b"]}, 5)


def test_what_is_signed_holds_where_one_part_ends():
    assert secure_sum.digest(b"ab", b"c") != secure_sum.digest(b"a", b"bc")
