"""The server optimizers, each against a step computed by hand."""

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAvgM, FedYogi

from fedsdr.config import Server
from fedsdr.methods import OPTIMIZERS
from fedsdr.server.optimize import OPTIMIZE, extrapolation

SERVER = Server(optimizer="fedadam", learning_rate=0.5, beta1=0.9, beta2=0.75, tau=0.1)
X, FIRST, SECOND = 1.0, 0.4, -0.2  # the state, and the clients' mean change in rounds 1 and 2


def two_rounds(name: str, server: Server = SERVER) -> list[float]:
    """x after each of two rounds whose targets are x + FIRST and x + SECOND."""
    state, moments, seen = {"B": np.array([X], dtype=np.float32)}, {}, []
    for change in (FIRST, SECOND):
        target = {"B": (state["B"] + change).astype(np.float32)}
        state, moments = OPTIMIZE[name](state, target, moments, server)
        seen.append(float(state["B"][0]))
    return seen


def by_hand(second) -> list[float]:
    """Algorithm 2 of Reddi et al.: m from 0, v from tau^2, no bias correction."""
    x, m, v, seen = X, 0.0, 0.1**2, []
    for change in (FIRST, SECOND):
        m = 0.9 * m + 0.1 * change
        v = second(v, change**2)
        x += 0.5 * m / (math.sqrt(v) + 0.1)
        seen.append(x)
    return seen


def test_every_optimizer_of_the_table_has_its_function():
    assert set(OPTIMIZE) == set(OPTIMIZERS)


def test_fedavg_takes_the_target_whatever_the_rate():
    assert two_rounds("fedavg") == pytest.approx([1.4, 1.2])


def test_undamped_momentum():
    m1 = FIRST
    m2 = 0.9 * m1 + SECOND
    assert two_rounds("fedavgm") == pytest.approx([X + 0.5 * m1, X + 0.5 * m1 + 0.5 * m2])


def test_damped_momentum_starts_at_a_tenth_of_the_undamped():
    m1 = 0.1 * FIRST
    m2 = 0.9 * m1 + 0.1 * SECOND
    assert two_rounds("fedavgm-damped") == pytest.approx([X + 0.5 * m1, X + 0.5 * m1 + 0.5 * m2])


def test_fedadagrad_sums_squares():
    assert two_rounds("fedadagrad") == pytest.approx(by_hand(lambda v, s: v + s))


def test_fedadam_averages_squares():
    assert two_rounds("fedadam") == pytest.approx(by_hand(lambda v, s: 0.75 * v + 0.25 * s))


def test_fedyogi_moves_by_the_sign():
    # Round 1: v = 0.01 < 0.16, so v grows by a quarter of 0.16, to 0.05; round 2: 0.05 > 0.04, it falls by 0.01.
    yogi = iter([0.05, 0.04])
    assert two_rounds("fedyogi") == pytest.approx(by_hand(lambda v, s: next(yogi)))


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ([(3.0, 4.0)], 1.0),  # alone: a half, but never less than fedavg's
        ([(1.0, 0.0), (0.0, 1.0)], 1.0),  # s = 1, |D|^2 = 1/2
        ([(1.0, 0.0), (-0.5, 0.0)], 5.0),  # s = 5/8, |D|^2 = 1/16
    ],
)
def test_fedexp_goes_the_further_beyond_the_target_the_more_clients_differ(changes, rate: float):
    """eta = max(1, s / (2 |D|^2)), with next to no tau, of the shared adapter as one vector."""
    mean = np.mean(changes, axis=0)
    spread = float(np.mean([np.square(change).sum() for change in changes]))
    state = {"A": np.array([X], np.float32), "B": np.array([X], np.float32)}
    target = {key: (state[key] + part).astype(np.float32) for key, part in zip(state, mean, strict=True)}
    server = Server(optimizer="fedexp", learning_rate=extrapolation(state, target, spread, 1e-9))
    new, kept = OPTIMIZE["fedexp"](state, target, {}, server)
    assert [float(value[0]) for value in new.values()] == pytest.approx(X + rate * mean)
    assert kept == {}


def test_fedexps_tau_bounds_the_rate_where_the_mean_change_vanishes():
    """s = 1, |D|^2 = 0.04, tau^2 = 0.01: eta = 10."""
    state, target = ({"B": np.array([value], np.float32)} for value in (X, X + 0.2))
    assert extrapolation(state, target, 1.0, 0.1) == pytest.approx(10)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_moves_when_no_client_changed_anything(name):
    state = {"A": np.array([[0.5, -2.0]], dtype=np.float32)}
    new, _ = OPTIMIZE[name](state, {"A": state["A"].copy()}, {}, SERVER)
    assert np.array_equal(new["A"], state["A"])
    assert new["A"].dtype == np.float32


@pytest.mark.parametrize(
    ("name", "theirs", "more"),
    [
        ("fedavgm", FedAvgM(server_learning_rate=0.5, server_momentum=0.9), {"beta1": 0.9}),
        # Flower's have no first moment there, and v begins at 0.
        ("fedadagrad", FedAdagrad(eta=0.5, tau=0.1), {"beta1": 0.0}),
        ("fedyogi", FedYogi(eta=0.5, tau=0.1, beta_1=0.9, beta_2=0.75), {"beta1": 0.9}),
    ],
)
def test_flower_takes_the_same_steps(name: str, theirs: Any, more: dict[str, float], flower_task: None):
    """Its FedAdam is left out: it corrects a bias, which the paper does not, with the number of the next round."""
    server = Server(optimizer=name, learning_rate=0.5, beta2=0.75, tau=0.1, **more)
    rng = np.random.default_rng(0)
    state = {"B": rng.normal(size=(3, 4)).astype(np.float32)}
    moments = {"v/B": np.zeros((3, 4))}
    for server_round in range(1, 5):
        target = {"B": state["B"] + rng.normal(size=(3, 4)).astype(np.float32)}
        record = ArrayRecord({"B": Array(state["B"])})
        theirs.current_arrays = record if name == "fedavgm" else dict(state)
        content = {
            "arrays": ArrayRecord({"B": Array(target["B"])}),
            "metrics": MetricRecord({"num-examples": 3}),
        }
        record, _ = theirs.aggregate_train(server_round, [Message(RecordDict(content), 1, "train")])
        state, moments = OPTIMIZE[name](state, target, moments, server)
        np.testing.assert_allclose(state["B"], record["B"].numpy(), rtol=1e-5, atol=1e-6)
