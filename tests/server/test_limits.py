"""Limits on one client: the weight that it may have, and the size of its change."""

import numpy as np
import pytest

from fedsdr.recipe import check_settings
from fedsdr.server.limits import cap_weights, change_norm, has_limits
from fedsdr.server.validate import Update

A, B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"


@pytest.mark.parametrize(
    ("reported", "capped"),
    [
        ([100, 120, 10**9], {2: 1200}),
        ([100, 10**9], {1: 1000}),  # of two the lower one counts: a client does not set its own limit
        ([100, 120, 1200], {}),
        ([100, 120, 1201], {2: 1200}),
        ([1, 100, 120], {}),
        ([7], {}),
    ],
)
def test_a_client_weighs_at_most_ten_times_the_median(reported, capped):
    events = [{"num_train": num} for num in reported]
    cap_weights(events, 10)
    assert {n: event["weight"] for n, event in enumerate(events) if "weight" in event} == capped


def test_without_a_cap_a_client_weighs_what_it_says():
    events = [{"num_train": 1}, {"num_train": 10**9}]
    cap_weights(events, 0)
    assert events == [{"num_train": 1}, {"num_train": 10**9}]


@pytest.mark.parametrize(
    ("values", "is_weighted"),
    [
        ({}, True),
        ({"privacy": {"kind": "local"}}, True),
        ({"privacy": {"kind": "central"}}, False),
        ({"server": {"robust": "median"}}, False),
        ({"method": "local-only"}, False),
    ],
)
def test_limits_apply_where_the_server_takes_a_weighted_mean(values, is_weighted: bool):
    """Else the log and the page would report a cap that changes nothing."""
    assert has_limits(check_settings(values, "test")) == is_weighted


def test_the_change_of_a_client_of_smaller_rank_is_measured_against_its_part_of_the_broadcast():
    sent = {A: np.ones((2, 3), np.float32), B: np.ones((4, 2), np.float32)}
    moved = {A: np.full((1, 3), 3, np.float32), B: np.ones((4, 1), np.float32)}
    norm = change_norm(Update("a", moved, 1, {}, 0), sent, is_fresh=False)
    assert norm == pytest.approx(np.sqrt(3 * 2**2))


def test_the_change_is_measured_where_b_alone_travels_and_where_nothing_does():
    norm = change_norm(
        Update("a", {B: np.full((4, 2), 2, np.float32)}, 1, {}, 0), {B: np.zeros((4, 2))}, False
    )
    assert norm == pytest.approx(np.sqrt(8 * 2**2))
    assert change_norm(Update("a", {}, 1, {}, 0), {}, is_fresh=False) == 0


def test_where_clients_begin_with_new_factors_their_change_is_the_product():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5)).astype(np.float32), rng.normal(size=(4, 2)).astype(np.float32)
    norm = change_norm(Update("a", {A: a, B: b}, 1, {}, 0), {}, is_fresh=True)
    assert norm == pytest.approx(np.linalg.norm(b.astype(np.float64) @ a))
