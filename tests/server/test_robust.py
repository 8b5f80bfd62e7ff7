"""Robust aggregators: values worked out by hand, and what a bad client can and cannot do."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum

from fedsdr.methods import ROBUST_AGGREGATORS
from fedsdr.server.robust import ROBUST as FUNCTIONS
from fedsdr.server.robust import _scores
from fedsdr.server.validate import Update

KEY = "base_model.model.q.lora_A.weight"
ROBUST = [name for name in ROBUST_AGGREGATORS if name != "none"]


def aggregated(
    name: str, values: list[list[float]], num_byzantine: int, weights: list[int] | None = None
) -> list[float]:
    """Aggregate clients whose factor is a row of numbers."""
    weights = weights or [1] * len(values)
    updates = [
        Update(f"c{n}", {KEY: np.array([value], dtype=np.float32)}, weight, {}, 0)
        for n, (value, weight) in enumerate(zip(values, weights, strict=True))
    ]
    target = FUNCTIONS[name](updates, num_byzantine)
    assert (target[KEY].dtype, target[KEY].shape) == (np.float32, (1, len(values[0])))
    return target[KEY][0].tolist()


def test_median_takes_the_middle_of_each_number():
    assert aggregated("median", [[1, 9], [2, 5], [100, 7]], 1) == [2, 7]
    assert aggregated("median", [[1], [2], [4], [100]], 1) == [3]  # (2 + 4) / 2


def test_trimmed_mean_drops_f_on_each_side_of_each_number():
    """Without the least and the largest: (2 + 3 + 4) / 3 and (0 + 1 + 2) / 3."""
    assert aggregated("trimmed-mean", [[1, 0], [2, 9], [3, 2], [4, 1], [90, -9]], 1) == [3, 1]
    assert aggregated("trimmed-mean", [[1], [3]], 0) == [2]


def test_krum_takes_the_client_nearest_to_its_neighbours():
    """n = 5, f = 1: each is judged by its 2 nearest. Of 0, 1, 3, 4, 50 squared distances to the nearest two
    are 1 + 9 = 10, 1 + 4 = 5, 1 + 4 = 5, 1 + 9 = 10, 46^2 + 47^2: the first of the two with 5."""
    assert aggregated("krum", [[0], [1], [3], [4], [50]], 1) == [1]


def test_multi_krum_averages_the_n_minus_f_minus_2_best():
    """The scores above: 5, 5 for 1 and 3: their mean."""
    assert aggregated("multi-krum", [[0], [1], [3], [4], [50]], 1) == [2]


def test_bulyan_averages_what_is_nearest_to_the_median_of_the_chosen():
    """n = 7, f = 1. Krum over 7 judges by the 4 nearest, over 6 by 3, 5 by 2, 4 and 3 by 1; 5 are chosen.

    Of -3, -1, 0, 1, 3, 4, 90 the scores are, to the four nearest,
    -3: 4+9+16+36 = 65; -1: 1+4+4+16 = 25; 0: 1+1+9+9 = 20; 1: 1+4+4+9 = 18; 3: 1+4+9+16 = 30; 4: 1+9+16+25 = 51:
    chosen 1. Left -3, -1, 0, 3, 4, 90, three nearest: 4+9+36 = 49; 1+4+16 = 21; 1+9+9 = 19; 1+9+16 = 26;
    1+16+25 = 42: chosen 0. Left -3, -1, 3, 4, 90, two nearest: 4+36 = 40; 4+16 = 20; 1+16 = 17; 1+25 = 26:
    chosen 3. Left -3, -1, 4, 90, one nearest: 4, 4, 25: chosen -3, the first. Left -1, 4, 90: 25, 25: chosen
    -1. Of -3, -1, 0, 1, 3 the median is 0; the 3 nearest to it are 0, -1, 1: mean 0.
    """
    assert aggregated("bulyan", [[-3], [-1], [0], [1], [3], [4], [90]], 1) == [0]


@pytest.mark.parametrize("name", ROBUST_AGGREGATORS)
def test_clients_that_agree_keep_what_they_agree_on(name: str):
    needed = ROBUST_AGGREGATORS[name].num_needed(1)
    assert aggregated(name, [[0.1, -7.0]] * max(needed, 2), 1) == [np.float32(0.1), -7.0]


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("num_byzantine", [1, 2])
def test_f_bad_clients_among_the_fewest_allowed_cannot_move_the_target_out_of_the_good_ones(
    name: str, num_byzantine: int
):
    """The mean of the same clients is at about 1e6 / n. A claimed weight does not help them."""
    num = ROBUST_AGGREGATORS[name].num_needed(num_byzantine)
    good = np.random.default_rng(0).normal(size=(num - num_byzantine, 3)).tolist()
    bad = [[1e6, -1e6, 1e6]] * num_byzantine
    values = [*bad, *good]
    weights = [10**6] * num_byzantine + [1] * len(good)
    target = np.array(aggregated(name, values, num_byzantine, weights))
    assert (np.min(good, axis=0) - 1e-6 <= target).all()
    assert (target <= np.max(good, axis=0) + 1e-6).all()
    assert max(np.abs(aggregated("none", values, 0, weights))) > 1e5


def test_distances_do_not_cancel():
    """Went wrong elsewhere: |a|^2 - 2 a b + |b|^2 is noise for near vectors far from zero, in float64 from 1e9 on."""
    far = np.array([[0.0], [1.0], [3.0], [4.0], [50.0]]) + 1e9
    assert _scores(far, 1).tolist() == [10, 5, 5, 10, 46**2 + 47**2]


@pytest.mark.parametrize("seed", range(5))
def test_flower_reduces_the_same(seed: int):
    """Eleven clients, f = 2. Flower's Bulyan takes its n - 2 f clients from a single krum, and not repeatedly
    as in the paper; so its krum is called repeatedly here, and its second half is used unchanged.
    """
    f = 2
    values = np.random.default_rng(seed).normal(size=(11, 6)).astype(np.float32)

    def chosen(rows: list[int], num: int) -> list[int]:
        contents = [
            RecordDict(
                {"arrays": ArrayRecord({"B": Array(values[row])}), "metrics": MetricRecord({"row": row})}
            )
            for row in rows
        ]
        return [int(content["metrics"]["row"]) for content in select_multikrum(contents, f, num)]

    everyone = list(range(len(values)))
    left, kept = list(everyone), []
    for _ in range(len(values) - 2 * f):
        kept += chosen(left, 1)
        left.remove(kept[-1])
    theirs = {
        "median": np.median(values, axis=0),
        "trimmed-mean": trim_mean(values, (f + 0.5) / len(values)),
        "krum": values[chosen(everyone, 1)[0]],
        "multi-krum": values[chosen(everyone, len(values) - f - 2)].mean(axis=0),
        "bulyan": aggregate_n_closest_weights(
            [np.median(values[kept], axis=0)], [[values[row]] for row in kept], len(kept) - 2 * f
        )[0],
    }
    assert set(theirs) == set(ROBUST)
    for name, expected in theirs.items():
        np.testing.assert_allclose(aggregated(name, values.tolist(), f), expected, rtol=1e-5, atol=1e-6)
