"""The server's round: whom it asks, which replies it uses, and when it gives up."""

import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedsdr.client.scaffold import ControlVariates
from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.messages.wire import broadcast
from fedsdr.plugins import FUNCTIONS
from fedsdr.recipe import check_settings
from fedsdr.rows import Aggregation, Optimizer
from fedsdr.server import strategy as strategy_module
from fedsdr.server.aggregate import Target
from fedsdr.server.sampling import draw_clients
from fedsdr.server.strategy import FedStrategy
from fedsdr.server.validate import Update, check_reply

KEY = "base_model.model.q.lora_A.weight"
ROSTER = {40: "d", 10: "c", 30: "a", 20: "b"}
"""Node ids are Flower's and have nothing to do with the order of the client ids."""
TOLD = {c: {"num_train": num, "num_test": 2} for c, num in {"a": 1, "b": 3, "c": 1, "d": 100}.items()}
SCORED = {
    f"eval/math/{name}@global": 0.5
    for name in ("score", "unsupported_rate", "words", "filler_rate", "redundancy", "cut_off_rate")
} | {f"eval/math/{name}@global": 2 for name in ("num_examples", "num_scored")}


pytestmark = pytest.mark.usefixtures("flower_task")


def choose(client: dict[str, Any] | None = None, **server: Any) -> Settings:
    values = {"run": {"seed": server.pop("seed", 0)}, "client": client or {}, "server": server}
    return check_settings(values, "test")


@pytest.fixture
def start() -> Callable[..., tuple[FedStrategy, list[Message]]]:
    """Return a strategy that has asked its clients to train (or to be evaluated) in round 2."""

    def begin(kind: str = "train", **server: Any) -> tuple[FedStrategy, list[Message]]:
        strategy = FedStrategy(choose(**server), ROSTER, TOLD, {KEY: np.zeros((1, 2), np.float32)}, {}, {})
        ask = strategy.configure_train if kind == "train" else strategy.configure_evaluate
        messages = list(ask(2, broadcast(strategy.arrays), ConfigRecord({"settings": "{}"}), None))
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"to {message.metadata.dst_node_id}"
        return strategy, messages

    return begin


def trained(message: Message, value: float, num_examples: int | None = None, **metrics: float) -> Message:
    if num_examples is None:
        num_examples = TOLD[ROSTER[message.metadata.dst_node_id]]["num_train"]
    record = broadcast({KEY: np.full((1, 2), value, np.float32)})
    numbers = MetricRecord({"round": 2, "num_examples": num_examples, "seconds": 1.0, **metrics})
    return Message(RecordDict({"arrays": record, "metrics": numbers}), reply_to=message)


def scored(message: Message, **metrics: float) -> Message:
    return Message(
        RecordDict({"metrics": MetricRecord({"round": 2, "seconds": 1.0, **metrics})}), reply_to=message
    )


def failed(message: Message) -> Message:
    return Message(Error(2, "KeyError, see node-1-error.txt"), reply_to=message)


def test_every_client_gets_the_shared_adapter_and_the_number_of_the_round(start):
    strategy, messages = start()
    assert [ROSTER[message.metadata.dst_node_id] for message in messages] == ["a", "b", "c", "d"]
    for message in messages:
        assert message.content["arrays"]["values"].numpy().tolist() == strategy.arrays[KEY].ravel().tolist()
        assert message.content["config"]["round"] == 2
        assert message.content["config"]["settings"] == "{}"


def test_a_round_takes_the_mean_weighted_by_examples_of_the_replies_that_passed(start):
    """(1 * 2 + 3 * 6) / 4 = 5; the failed client and the NaN count for nothing."""
    strategy, (a, b, c, d) = start()
    replies = [trained(a, 2.0), trained(b, 6.0), failed(c), trained(d, float("nan"))]
    record, _ = strategy.aggregate_train(2, replies)
    assert [record["values"].numpy().tolist()] == strategy.arrays[KEY].tolist() == [[5.0, 5.0]]
    events = strategy.events()
    assert [(e["event"], e["client"]) for e in events] == [
        ("dropped", "c"), ("dropped", "d"), ("train", "a"), ("train", "b"),
    ]  # fmt: skip
    assert events[0]["reason"] == "the client failed: KeyError, see node-1-error.txt"
    assert "finite" in events[1]["reason"]
    assert all(event["round"] == 2 for event in events)


def test_the_log_of_a_reply_holds_its_metrics_and_the_bytes_of_its_arrays(start):
    strategy, messages = start()
    told = {f"train/shared/{name}": 2.5 for name in ("loss", "first_loss", "last_loss")}
    told |= {f"train/shared/{name}": 3 for name in ("num_steps", "num_tokens")}
    strategy.aggregate_train(2, [trained(m, 1.0, **told) for m in messages])
    about = {"event": "train", "round": 2, "client": "a", "num_bytes_up": 2 * 4, "num_examples": 1}
    assert strategy.events()[0] == about | {"seconds": 1.0} | told


def test_fedexp_weighs_the_clients_as_the_mean_does_and_leaves_out_those_that_are_dropped(start):
    """Changes 3, -1 and 2 of both numbers, of 1, 3 and 1 examples: D = 2/5 and s = 2 (9 + 3 + 4) / 5."""
    strategy, (a, b, c, d) = start(optimizer="fedexp", tau=0.1)
    strategy.aggregate_train(
        2, [trained(a, 3.0), trained(b, -1.0), trained(c, 2.0), trained(d, float("nan"))]
    )
    eta = (2 * 16 / 5) / (2 * (2 * 0.4**2 + 0.1**2))
    assert strategy.arrays[KEY].ravel().tolist() == pytest.approx([eta * 0.4] * 2)


@pytest.mark.parametrize(
    ("quorum", "num_asked", "needed"),
    [(0.5, 4, 2), (0.51, 4, 3), (1.0, 4, 4), (0.01, 4, 1), (0.5, 3, 2), (1.0, 1, 1)],
)
def test_a_round_goes_on_at_the_quorum_and_stops_below_it(start, quorum: float, num_asked: int, needed: int):
    for num_good in range(num_asked + 1):
        strategy, messages = start(quorum=quorum, clients_per_round=num_asked)
        replies = [trained(m, 1.0) if n < num_good else failed(m) for n, m in enumerate(messages)]
        if num_good >= needed:
            strategy.aggregate_train(2, replies)
        else:
            with pytest.raises(UserError, match=f"{num_good} of {num_asked} sampled.* needs {needed}"):
                strategy.aggregate_train(2, replies)


@pytest.mark.parametrize(
    ("quorum", "num_sampled", "needed"), [(0.07, 100, 7), (0.28, 25, 7), (0.14, 50, 7), (0.281, 25, 8)]
)
def test_a_quorum_of_a_whole_number_of_clients_needs_that_number(start, quorum, num_sampled, needed):
    """In floating point 0.07 * 100 is above 7."""
    strategy, _ = start(quorum=quorum)
    assert strategy.quorum(num_sampled) == needed


def test_clients_that_do_not_answer_at_all_count_against_the_quorum(start):
    strategy, messages = start(quorum=0.75)
    with pytest.raises(UserError, match="2 of 4"):
        strategy.aggregate_train(2, [trained(message, 1.0) for message in messages[:2]])


def test_the_message_below_the_quorum_says_whom_it_dropped_and_why(start):
    strategy, messages = start(quorum=1)
    replies = [trained(messages[0], 1.0, num_examples=0), *(trained(m, 1.0) for m in messages[1:])]
    with pytest.raises(
        UserError, match="Dropped: a: weight num_examples = 0 is not the 1 reported by prepare"
    ):
        strategy.aggregate_train(2, replies)
    assert strategy.arrays[KEY].tolist() == [[0.0, 0.0]]


def test_scores_of_a_client_that_answers_badly_are_dropped_and_the_others_kept(start):
    """Without metrics, of another round, with text: one client must not end the evaluation of all."""
    strategy, (a, b, c, d) = start("evaluate", quorum=0.25)
    replies = [
        Message(RecordDict({"arrays": ArrayRecord()}), reply_to=a),
        scored(b, **SCORED),
        Message(RecordDict({"metrics": MetricRecord({"round": 1})}), reply_to=c),
        failed(d),
    ]
    strategy.aggregate_evaluate(2, replies)
    events = strategy.events()
    assert [(event["event"], event["client"]) for event in events] == [
        ("dropped", "a"), ("dropped", "c"), ("dropped", "d"), ("evaluate", "b"),
    ]  # fmt: skip
    assert events[3] == {"event": "evaluate", "round": 2, "client": "b", "seconds": 1.0, **SCORED}


def test_an_evaluation_below_the_quorum_stops_the_run(start):
    strategy, messages = start("evaluate", quorum=0.75)
    with pytest.raises(UserError, match="2 of 4 sampled clients"):
        strategy.aggregate_evaluate(
            2, [*(scored(m, **SCORED) for m in messages[:2]), *map(failed, messages[2:])]
        )


@pytest.mark.parametrize(("method", "tested"), [("fedsdr", ["a"]), ("fdlora", ["a", "b"])])
def test_clients_without_test_examples_are_evaluated_only_to_fuse_their_adapters(
    method: str, tested: list[str]
):
    prepared = {name: {"num_train": 2, "num_test": num} for name, num in {"a": 1, "b": 0}.items()}
    settings = check_settings({"method": method}, "test")
    assert FedStrategy(settings, ROSTER, prepared, {}, {}, {}).tested() == tested


def test_all_clients_are_evaluated_even_where_few_are_drawn_to_train(start):
    assert len(start("train", clients_per_round=2)[1]) == 2
    assert len(start("evaluate", clients_per_round=2)[1]) == 4


def test_the_draw_belongs_to_run_seed_and_round_and_touches_no_random_state():
    """Went wrong elsewhere: `random.seed(round)`, so every run drew the same clients, and reset the process."""
    clients = [f"c{n:02}" for n in reversed(range(10))]
    random.seed(5)
    state = random.getstate()

    def draw(seed: int) -> list[list[str]]:
        return [draw_clients(clients, 3, seed, n) for n in range(1, 31)]

    first = draw(0)
    assert random.getstate() == state
    assert draw(0) == first
    assert draw(1) != first
    assert all(drawn == sorted(set(drawn)) and len(drawn) == 3 for drawn in first)
    # 30 rounds of 3 of 10: a client that is never drawn has a chance of 0.7^30 = 2e-5.
    assert {client for drawn in first for client in drawn} == set(clients)


def test_a_client_that_is_away_changes_nothing_of_who_is_drawn_and_counts_as_dropped(start):
    """In a deployment the same run must sample the same clients, regardless of who is connected."""
    strategy, messages = start("train", clients_per_round=3, quorum=0.5)
    drawn = [strategy.roster[message.metadata.dst_node_id] for message in messages]
    strategy.absent = {drawn[0]}
    record, config = broadcast(strategy.arrays), ConfigRecord({"settings": "{}"})
    messages = list(strategy.configure_train(2, record, config, None))
    assert [strategy.roster[message.metadata.dst_node_id] for message in messages] == drawn[1:]
    strategy.aggregate_train(2, [trained(message, 1.0) for message in messages])
    (dropped,) = [event for event in strategy.events() if event["event"] == "dropped"]
    assert (dropped["client"], dropped["reason"]) == (drawn[0], "it is not connected")


def test_the_quorum_counts_those_that_are_away(start):
    """Else one client of ten that is still there would decide a round alone."""
    strategy, _ = start("train", quorum=0.75)
    strategy.absent = {"a", "b"}
    record, config = broadcast(strategy.arrays), ConfigRecord({"settings": "{}"})
    messages = list(strategy.configure_train(2, record, config, None))
    with pytest.raises(UserError, match="2 of 4 sampled clients gave a usable reply"):
        strategy.aggregate_train(2, [trained(message, 1.0) for message in messages])


def test_who_does_not_answer_in_time_is_dropped_and_the_round_goes_on(start):
    strategy, messages = start("train", quorum=0.5)
    late = strategy.roster[messages[-1].metadata.dst_node_id]
    strategy.aggregate_train(2, [trained(message, 1.0) for message in messages[:-1]])
    (dropped,) = [event for event in strategy.events() if event["event"] == "dropped"]
    assert (dropped["client"], dropped["reason"]) == (late, "no answer in 3600 s")


def test_an_error_that_flower_answers_with_names_the_client_that_is_gone(start):
    """Flower's own reply for a node that went away does not come from that node."""
    strategy, messages = start("train", quorum=0.5)
    gone = Message(Error(7, "unavailable"), reply_to=messages[0])
    gone.metadata.__dict__["_src_node_id"] = 1
    strategy.aggregate_train(2, [gone, *(trained(message, 1.0) for message in messages[1:])])
    dropped = [event["client"] for event in strategy.events() if event["event"] == "dropped"]
    assert dropped == [strategy.roster[messages[0].metadata.dst_node_id]]


def test_a_client_that_answers_twice_counts_once(start):
    """a has one example and b three: (1 * 1 + 3 * 0) / 4, and not (1 * 1 + 1 * 1 + 3 * 0) / 5."""
    strategy, (first, second, *_) = start(clients_per_round=0, quorum=0.5)
    strategy.aggregate_train(2, [trained(first, 1.0), trained(first, 1.0), trained(second, 0.0)])
    assert strategy.arrays[KEY].tolist() == [[0.25, 0.25]]
    dropped = [event["client"] for event in strategy.events() if event["event"] == "dropped"]
    assert dropped == ["-", "c", "d"]  # the second answer; and those that gave none


def test_a_client_that_was_not_asked_is_not_counted(start):
    strategy, messages = start(clients_per_round=2)
    _, everyone = start()
    uninvited = [
        m for m in everyone if m.metadata.dst_node_id not in {n.metadata.dst_node_id for n in messages}
    ]
    replies = [*(trained(message, 1.0) for message in messages), trained(uninvited[0], 9.0)]
    strategy.aggregate_train(2, replies)
    assert strategy.arrays[KEY].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 2, 3)])
def test_the_mean_holds_one_update_at_a_time_whatever_the_order_of_replies(start, monkeypatch, order):
    """With a thousand clients the server's memory is that of one."""
    alive: list[weakref.ref] = []
    most = []

    def checking(*args: Any) -> Update:
        update = check_reply(*args)
        alive.append(weakref.ref(update.arrays[KEY]))
        most.append(sum(ref() is not None for ref in alive))
        return update

    monkeypatch.setattr(strategy_module, "check_reply", checking)
    strategy, messages = start()
    strategy.aggregate_train(2, (trained(messages[place], 1.0) for place in order))
    assert max(most) <= 2, "the one that is checked, and the one before, which is being written"


def test_what_one_client_sends_a_thousand_times_too_large_is_dropped_with_the_reason(start):
    """Norms are sqrt(2) times 1, 1, 1 and 1000: the median is sqrt(2), and the mean of the rest is 1."""
    strategy, (a, b, c, d) = start()
    strategy.aggregate_train(2, [trained(a, 1.0), trained(b, 1.0), trained(c, 1.0), trained(d, 1000.0)])
    assert strategy.arrays[KEY].tolist() == [[1.0, 1.0]]
    dropped, *used = strategy.events()
    assert (dropped["client"], [event["client"] for event in used]) == ("d", ["a", "b", "c"])
    assert "norm 1.41e+03, above server.max_change = 10 times the round's median 1.41" in dropped["reason"]


def test_a_change_of_ten_times_the_median_is_still_used_and_the_operator_may_set_another_limit(start):
    """(1 + 3 + 1 + 100 * 10) / 105."""
    for limit, value in ((10, 10.0), (0, 1000.0), (1000, 1000.0)):
        strategy, messages = start(max_change=limit)
        strategy.aggregate_train(2, [trained(m, v) for m, v in zip(messages, (1, 1, 1, value), strict=True)])
        assert strategy.arrays[KEY] == pytest.approx((5 + 100 * value) / 105)


def test_of_two_clients_neither_can_have_the_other_dropped(start):
    strategy, (a, b, *_) = start(quorum=0.5)
    strategy.aggregate_train(2, [trained(a, 1e-9), trained(b, 1.0)])
    assert {event["client"] for event in strategy.events() if event["event"] == "train"} == {"a", "b"}


def test_too_large_changes_count_against_the_quorum(start):
    strategy, messages = start(quorum=1.0)
    with pytest.raises(UserError, match=r"3 of 4 sampled clients.*Dropped: d: its change of the shared"):
        strategy.aggregate_train(2, [trained(m, v) for m, v in zip(messages, (1, 1, 1, 99), strict=True)])
    assert strategy.arrays[KEY].tolist() == [[0.0, 0.0]]


def test_a_robust_aggregator_drops_none_so_no_large_change_can_stop_its_round(start):
    """krum needs five; median and trimmed mean handle four clients with a malicious one."""
    strategy, messages = start(robust="trimmed-mean", num_byzantine=1, quorum=1.0)
    strategy.aggregate_train(2, [trained(m, v) for m, v in zip(messages, (1, 1, 1, 99), strict=True)])
    assert strategy.arrays[KEY].tolist() == [[1.0, 1.0]]


def test_the_weight_that_the_server_gives_a_client_is_the_one_that_counts(start):
    """(1 * 1 + 3 * 1 + 1 * 1 + 10 * 4) / 15 = 3, where d's own 100 examples would make it 405 / 105."""
    strategy, messages = start()
    strategy.prepared = TOLD | {"d": TOLD["d"] | {"weight": 10}}
    strategy.aggregate_train(2, [trained(m, v) for m, v in zip(messages, (1, 1, 1, 4), strict=True)])
    assert strategy.arrays[KEY].tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize(("kind", "name"), [(Aggregation, "average"), (Optimizer, "fedavg")])
@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, f"{KEY} is missing"),
        ({KEY: np.zeros((1, 2)), "more": np.zeros(1)}, "more is missing or unknown"),
        ({KEY: np.zeros((2, 1))}, r"of shape \(2, 1\), expected \(1, 2\)"),
        ({KEY: np.full((1, 2), np.nan)}, "not finite"),
    ],
)
def test_a_wrong_result_of_a_plugin_stops_the_round_before_it_is_used(
    start, monkeypatch: pytest.MonkeyPatch, kind: type, name: str, arrays: Any, said: str
):
    monkeypatch.setitem(FUNCTIONS[kind], name, lambda *_: Target(arrays, {}))
    strategy, messages = start()
    with pytest.raises(
        UserError, match=f"round 2: server.{kind.__name__.lower()} = '{name}' returned.*{said}"
    ):
        strategy.aggregate_train(2, [trained(message, 1.0) for message in messages])
    assert strategy.arrays[KEY].tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({"more": np.zeros((1, 2))}, "missing or unknown"),
        ({KEY: np.zeros((3, 5))}, r"of shape \(3, 5\), expected \(3, 2\)"),
        ({KEY: np.full((3, 2), np.inf)}, "not finite"),
    ],
)
def test_a_wrong_change_of_the_base_by_a_plugin_stops_the_round(
    start, monkeypatch: pytest.MonkeyPatch, added: Any, said: str
):
    monkeypatch.setitem(FUNCTIONS[Aggregation], "average", lambda *rest: Target(rest[-1].shared, added))
    strategy, messages = start()
    with pytest.raises(UserError, match=f"'average' returned.*{said}"):
        strategy.aggregate_train(2, [trained(message, 1.0) for message in messages])


@pytest.mark.parametrize(("kind", "name"), [(Aggregation, "average"), (Optimizer, "fedavg")])
def test_a_result_of_a_plugin_in_float64_is_broadcast_in_float32(
    start, monkeypatch: pytest.MonkeyPatch, kind: type, name: str
):
    monkeypatch.setitem(FUNCTIONS[kind], name, lambda *_: Target({KEY: np.full((1, 2), 0.1)}, {}))
    strategy, messages = start()
    record, _ = strategy.aggregate_train(2, [trained(message, 1.0) for message in messages])
    assert record["values"].numpy().dtype == np.float32
    assert record["values"].numpy().tolist() == [np.float32(0.1)] * 2


SCAFFOLD = {"drift_correction": "scaffold", "optimizer": "sgd", "max_grad_norm": 0.0}


def steered(message: Message, value: float, change: float) -> Message:
    reply = trained(message, value)
    reply.content["arrays"] = broadcast(
        {KEY: np.full((1, 2), value, np.float32)}, control_variates=np.full(2, change, np.float32)
    )
    return reply


def test_the_servers_control_variate_moves_by_the_plain_sum_of_changes_over_all_clients(start):
    """c + (|S| / N) mean of dc = 0.5 + (2 / 4) (3 + 1) / 2 = 1.5: c was not sampled, d's reply is dropped.
    Examples are 1 and 3: they weight the adapter, (1 * 2 + 3 * 6) / 4 = 5, but not c. A server optimizer's
    moments are saved next to it.
    """
    strategy, messages = start(client=SCAFFOLD, optimizer="fedavgm", clients_per_round=0)
    assert strategy.control_variates().tolist() == [0, 0]
    strategy.moments = {"control_variates": np.full(2, 0.5), f"m/{KEY}": np.zeros((1, 2))}
    a, b, _, d = messages
    strategy.aggregate_train(2, [steered(a, 2.0, 3.0), steered(b, 6.0, 1.0), steered(d, 0.0, float("nan"))])
    assert strategy.control_variates().tolist() == [1.5, 1.5]
    assert strategy.moments[f"m/{KEY}"].tolist() == strategy.arrays[KEY].tolist() == [[5.0, 5.0]]


def test_a_round_below_the_quorum_leaves_the_control_variate_as_it_was(start):
    strategy, (a, *_) = start(client=SCAFFOLD, quorum=1)
    with pytest.raises(UserError):
        strategy.aggregate_train(2, [steered(a, 2.0, 3.0)])
    assert strategy.control_variates().tolist() == [0, 0]


def test_control_variates_lead_unlike_clients_to_the_optimum_of_their_mean(start):
    """Losses (w - 1)^2 / 2 and 3 (w + 1)^2 / 2: the mean's optimum is where (w - 1) + 3 (w + 1) = 0, at -1/2.

    Ten steps of 0.1 bring each client nearly to its own optimum, so averaging alone comes to rest where
    (1 - 0.9^10) (w - 1) + (1 - 0.7^10) (w + 1) = 0: 0.6513 (w - 1) + 0.9718 (w + 1) = 0, at -0.1974.
    """

    def rests_at(**more: Any) -> float:
        strategy, messages = start(clients_per_round=0, **more)
        own = {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}
        slopes = {"a": lambda w: w - 1, "b": lambda w: 3 * (w + 1)}
        strategy.roster = {node: client for node, client in ROSTER.items() if client in own}
        strategy.prepared = {client: {"num_train": 1} for client in own}
        for _ in range(100):
            strategy.configure_train(2, strategy.record(), ConfigRecord(), None)
            replies = []
            x = strategy.arrays[KEY].ravel()
            for message, client in zip(messages, own, strict=False):
                c = strategy.control_variates()
                control_variates = ControlVariates(np.zeros(2, np.float32) if c is None else c, own[client])
                y = x.astype(np.float64)
                for _ in range(10):
                    y = y - 0.1 * (slopes[client](y) + control_variates.shift)
                y = y.astype(np.float32)
                record = broadcast({KEY: y.reshape(1, 2)})
                if c is not None:
                    change = control_variates.change(x, y, 10, 0.1)
                    own[client] = own[client] + change
                    record = broadcast({KEY: y.reshape(1, 2)}, control_variates=change)
                reply = trained(message, 0.0, num_examples=1)
                reply.content["arrays"] = record
                replies.append(reply)
            strategy.aggregate_train(2, replies)
        return float(strategy.arrays[KEY][0, 0])

    assert rests_at() == pytest.approx(-0.1974, abs=1e-3)
    assert rests_at(client=SCAFFOLD) == pytest.approx(-0.5, abs=1e-4)
