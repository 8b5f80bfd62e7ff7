"""Invariant 3: the order in which replies arrive changes no byte; one factor on all weights changes nothing."""

from collections.abc import Callable, Iterable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import fedsdr
from fedsdr.config import Server, Settings
from fedsdr.federation.local_engine import LocalGrid
from fedsdr.messages.wire import Arrays, broadcast, cut
from fedsdr.methods import AGGREGATIONS
from fedsdr.server.aggregate import AGGREGATE, Before
from fedsdr.server.strategy import FedStrategy
from fedsdr.server.validate import Update
from fedsdr.storage import Event

ROSTER = {1: "a", 2: "b", 3: "c"}
NUM_EXAMPLES = {1: 3, 2: 5, 3: 7}


def test_whole_run_does_not_depend_on_the_order_of_replies(
    run_settings: Callable[..., Settings],
    finished: Callable[..., Path],
    results: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    straight = finished(method="fedsdr")
    send_and_receive = LocalGrid.send_and_receive

    def reversed_replies(grid: LocalGrid, messages: Iterable[Message], **options: Any) -> Iterable[Message]:
        return list(send_and_receive(grid, messages, **options))[::-1]

    monkeypatch.setattr(LocalGrid, "send_and_receive", reversed_replies)
    assert results(fedsdr.run(run_settings(method="fedsdr")).folder) == results(straight)


def factors_of(node: int) -> Arrays:
    """Factors that cancel in the mean but for a small part, which a sum in another order rounds away.

    3 * 5 L - 5 * 3 L + 7 * small, with L up to 200 and `small` near the precision of float64 there.
    """
    factors = {}
    for name, shape in (("A", (4, 8)), ("B", (8, 4))):
        rng = np.random.default_rng(0)
        large, small = rng.integers(-200, 200, size=shape), rng.normal(size=shape) * 1e-12
        factors[f"x.lora_{name}.weight"] = {1: 5 * large, 2: -3 * large, 3: small}[node].astype(np.float32)
    return factors


def replies_with(settings: Settings, factor: int, folder: Path) -> list[Message]:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        sends = AGGREGATIONS[settings.server.aggregation].sends
        factors = cut(factors_of(context.node_id), settings.lora.rank_of(ROSTER[context.node_id]))
        arrays = broadcast({k: v for k, v in factors.items() if sends(k)})
        metrics = MetricRecord(
            {"round": 1, "seconds": 1.0, "num_examples": factor * NUM_EXAMPLES[context.node_id]}
        )
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    grid = LocalGrid(app, 3, folder)
    fresh = {key: np.zeros_like(value) for key, value in factors_of(1).items()}
    strategy = FedStrategy(settings, ROSTER, told(factor), fresh, {}, {})
    return list(grid.send_and_receive(strategy.configure_train(1, broadcast(fresh), ConfigRecord(), grid)))


def told(factor: int) -> dict[str, Event]:
    return {ROSTER[node]: {"num_train": factor * num, "num_test": 0} for node, num in NUM_EXAMPLES.items()}


def aggregated(settings: Settings, replies: Iterable[Message], factor: int = 1) -> Arrays:
    fresh = {key: np.zeros_like(value) for key, value in factors_of(1).items()}
    strategy = FedStrategy(settings, ROSTER, told(factor), fresh, {}, {})
    strategy.configure_train(1, strategy.record(), ConfigRecord(), None)
    strategy.aggregate_train(1, replies)
    return strategy.arrays | {f"added/{key}": value for key, value in strategy.residual.items()}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_order_and_common_factor_change_no_aggregation(
    run_settings: Callable[..., Settings], aggregation: str, tmp_path: Path
) -> None:
    ranks = {"lora.client_ranks.b": 3} if AGGREGATIONS[aggregation].ranks != "one" else {}
    settings = run_settings(**{"server.aggregation": aggregation, **ranks})
    replies = replies_with(settings, 1, tmp_path)
    expected = aggregated(settings, replies)
    for order in permutations(replies):
        got = aggregated(settings, order)
        assert all(got[key].tobytes() == expected[key].tobytes() for key in expected)
    scaled = aggregated(settings, replies_with(settings, 7, tmp_path), 7)
    for key in expected:
        np.testing.assert_allclose(scaled[key], expected[key], rtol=2**-23)  # one step of float32


@pytest.mark.parametrize("missing", ROSTER)
def test_order_changes_nothing_where_a_client_does_not_answer(
    run_settings: Callable[..., Settings], missing: int, tmp_path: Path
) -> None:
    settings = run_settings()
    replies = [r for r in replies_with(settings, 1, tmp_path) if r.metadata.src_node_id != missing]
    expected = aggregated(settings, replies)
    got = aggregated(settings, replies[::-1])
    assert all(got[key].tobytes() == expected[key].tobytes() for key in expected)


def test_the_factors_above_would_show_a_wrong_order() -> None:
    updates = [Update(ROSTER[node], factors_of(node), NUM_EXAMPLES[node], {}, 0) for node in ROSTER]
    straight, turned = (
        AGGREGATE["average"](order, Server(), Before({}, 1)).shared for order in (updates, updates[::-1])
    )
    assert any(straight[key].tobytes() != turned[key].tobytes() for key in straight)
