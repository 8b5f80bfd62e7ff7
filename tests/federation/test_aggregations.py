"""Aggregations in a whole run: the global model, messages, saved state, and rejected settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsdr.client import round as client_round
from fedsdr.client.state import load_state
from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.federation.client_context import close_clients
from fedsdr.federation.export import export_round, open_chat
from fedsdr.federation.model_cache import load_model, model_of
from fedsdr.federation.run import evaluate_round, run
from fedsdr.messages import wire
from fedsdr.model.adapter_files import load_adapter
from fedsdr.model.base import Base
from fedsdr.progress import here
from fedsdr.recipe import load_settings
from fedsdr.server import strategy
from fedsdr.server.validate import Update
from fedsdr.storage import Event, read_json, read_lines

Product = dict[str, np.ndarray]
"""B A of each layer by the key of A, float64."""


@pytest.fixture(autouse=True)
def fresh_process() -> None:
    """Every test begins as a new process does."""
    close_clients()
    load_model.cache_clear()


@pytest.fixture
def run_with(tiny_settings: Callable[..., Settings]) -> Callable[..., tuple[Path, list[Event]]]:
    """Run an aggregation with three clients; return the folder and the events."""

    def start(aggregation: str, **more: Any) -> tuple[Path, list[Event]]:
        settings = tiny_settings(**{
            "method": "fedit", "server.aggregation": aggregation, "server.num_rounds": 2,
            "data.domains": ["finance", "general", "math"], "eval.max_new_tokens": 2,
            "client.learning_rate": 0.01, "eval.rewritings": False,
        } | more)  # fmt: skip
        folder = run(settings).folder
        return folder, read_lines(folder / "metrics.jsonl")

    return start


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Update]]:
    """What passes validation, by round."""
    found: dict[int, list[Update]] = {}
    check_reply = strategy.check_reply

    def listening(*args: Any) -> Update:
        update = check_reply(*args)
        found.setdefault(int(update.metrics["round"]), []).append(update)
        return update

    monkeypatch.setattr(strategy, "check_reply", listening)
    return found


def product(arrays: Any) -> Product:
    values = {key: np.asarray(value, dtype=np.float64) for key, value in arrays.items()}
    return {key_a: values[key_b] @ values[key_a] for key_a, key_b in wire.pairs(values)}


def mean(updates: list[Update], of: Callable[[Any], Product]) -> Product:
    total = sum(update.num_examples for update in updates)
    parts = [(update.num_examples / total, of(update.arrays)) for update in updates]
    return {key: sum(weight * part[key] for weight, part in parts) for key in parts[0][1]}


def saved(folder: Path, server_round: int) -> Any:
    return load_adapter(folder / "server" / f"round-{server_round:04d}")


def same(found: Product, wanted: Product) -> None:
    assert any(np.abs(value).max() > 1e-3 for value in wanted.values())
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ranks", [{}, {"lora.client_ranks.math": 1}], ids=["one rank", "several"])
def test_the_global_model_of_flora_is_the_sum_of_all_mean_products(run_with, updates, ranks):
    """Four rounds of three clients of rank 4 are more than the narrowest layers (32) can hold."""
    folder, _ = run_with("flora", **{"server.num_rounds": 4, "partition.num_clients": 3} | ranks)
    wanted: Product = {}
    for server_round in (1, 2, 3, 4):
        new = mean(updates[server_round], product)
        wanted = {key: wanted.get(key, 0) + value for key, value in new.items()}
        same(product(saved(folder, server_round)), wanted)


def test_the_global_model_of_fedex_is_what_was_added_and_the_mean_product(run_with, updates):
    """res_t = res_(t-1) + mean(B A) - mean(B) mean(A), and the global model is res_t + mean(B) mean(A)."""
    folder, _ = run_with("fedex", **{"server.num_rounds": 4})
    residual: Product = {}
    for server_round in (1, 2, 3, 4):
        whole = {
            key: residual.get(key, 0) + value for key, value in mean(updates[server_round], product).items()
        }
        factors = mean(updates[server_round], lambda arrays: dict(arrays))
        averaged = product(factors)
        residual = {key: value - averaged[key] for key, value in whole.items()}
        same(product(saved(folder, server_round)), whole)
        first = wire.cut({key: value.numpy() for key, value in saved(folder, server_round).items()}, 4)
        for key, value in factors.items():
            np.testing.assert_allclose(first[key], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("aggregation", ["flora", "fedex"])
def test_a_client_begins_with_the_whole_global_model_though_it_missed_rounds(
    run_with, monkeypatch: pytest.MonkeyPatch, aggregation: str
):
    """Its forward pass adds to W0 h what the round's folder holds, in float32."""
    begun: list[tuple[int, Product]] = []
    local_update = client_round.local_update

    def spy(model, *rest, **more):
        server_round = int(here().split(",")[0].removeprefix("round "))
        model.set(active=("shared",), train=("shared",))
        factors = {path: layer.factors(torch.float32) for path, layer in model.layers.items()}
        found = {
            f"base_model.model.{path}.lora_A.weight": (b.double() @ a.double()).detach().numpy()
            for path, (a, b) in factors.items()
        }
        begun.append((server_round, found))
        return local_update(model, *rest, **more)

    monkeypatch.setattr(client_round, "local_update", spy)
    folder, _ = run_with(aggregation, **{"server.num_rounds": 4, "server.clients_per_round": 2})
    assert len(begun) == 8
    for server_round, found in begun:
        wanted = product(saved(folder, server_round - 1))
        for key, value in wanted.items():
            np.testing.assert_allclose(found[key], 4.0 * value, rtol=1e-4, atol=1e-6)  # alpha / r = 16 / 4


def test_flora_draws_new_factors_in_each_round_and_sends_down_what_was_added_alone(run_with, updates):
    folder, events = run_with("flora", **{"client.learning_rate": 1e-9, "client.schedule": "constant"})
    (first, *others), second = updates[1], updates[2][0]
    key = next(key for key in first.arrays if ".lora_A." in key)
    for other in others:  # one A for all clients, and hardly trained
        np.testing.assert_allclose(other.arrays[key], first.arrays[key], atol=1e-6)
    assert np.abs(second.arrays[key] - first.arrays[key]).max() > 0.01
    down = [event["num_bytes_down"] for event in events if event["event"] == "round"]
    up = {event["num_bytes_up"] for event in events if event["event"] == "train"}
    assert len(up) == 1
    assert down == [0, 3 * up.pop() + 8]  # the rank, an integer of 8 bytes
    assert all(np.array_equal(saved(folder, 0)[k], v) for k, v in wire.cut(saved(folder, 2), 4).items())


def test_what_was_added_is_in_no_stage_without_the_shared_adapter(tiny_settings):

    model = model_of(tiny_settings())
    state = model.state("shared")
    model.load_residual({key: torch.ones_like(value) for key, value in state.items()})
    uses = {
        active: {layer.uses_residual for layer in model.layers.values()}
        for active in ((), ("private",), ("shared",), ("shared", "private"))
        if model.set(active, train=()) is None
    }
    assert uses == {(): {False}, ("private",): {False}, ("shared",): {True}, ("shared", "private"): {True}}


@pytest.mark.parametrize("method", ["fedit", "fedsdr"])
def test_fedsa_shares_a_keeps_b_and_has_personalised_scores_alone(run_with, updates, method: str):
    folder, events = run_with("fedsa", method=method)
    for server_round in (1, 2):
        assert not any(v.any() for k, v in saved(folder, server_round).items() if ".lora_B." in k)
        for update in updates[server_round]:
            assert all(".lora_A." in key for key in update.arrays)
            own = load_state(folder / "clients" / update.client, server_round + 1, False).arrays
            assert all(".lora_B." in key and value.any() for key, value in own.items())
    factors = mean(updates[2], lambda arrays: dict(arrays))
    for key, value in factors.items():
        np.testing.assert_allclose(saved(folder, 2)[key], value, rtol=1e-5, atol=1e-7)
    down = {event["num_bytes_down"] for event in events if event["event"] == "round"}
    assert down == {sum(4 * value.size for value in factors.values())}
    assert set(read_json(folder / "evaluation/round-0000.json")) == {"global"}  # the base model
    last = read_json(folder / "evaluation/round-0002.json")
    assert set(last) == {"personalised"}
    assert last["personalised"]["mean"]["num_examples"] == 6
    assert set(evaluate_round(folder, 1)[1]) == {"personalised"}
    page = (folder / "report.html").read_text()
    assert "There is no global model" in page
    assert "global model, on" not in page


def test_fedsa_goes_on_with_a_client_s_own_b(run_with, monkeypatch: pytest.MonkeyPatch):
    begun: list[bool] = []
    local_update = client_round.local_update

    def spy(model, *rest, **more):
        begun.append(model.is_zero("shared"))
        return local_update(model, *rest, **more)

    monkeypatch.setattr(client_round, "local_update", spy)
    folder, _ = run_with("fedsa")
    assert begun == [True] * 3 + [False] * 3
    own = [load_state(folder / "clients" / name, 3, False).arrays for name in ("finance", "math")]
    assert not any(np.array_equal(own[0][key], own[1][key]) for key in own[0])


def test_a_client_of_fedsa_that_was_never_drawn_has_no_scores(run_with):
    folder, events = run_with("fedsa", **{"server.num_rounds": 1, "server.clients_per_round": 1})
    (drawn,) = [event["client"] for event in events if event["event"] == "train"]
    scored = [event for event in events if event["event"] == "evaluate" and event["round"] == 1]
    has_scores = {event["client"]: any("@" in key for key in event) for event in scored}
    assert has_scores == {name: name == drawn for name in ("finance", "general", "math")}
    assert "mean" not in read_json(folder / "evaluation/round-0001.json")["personalised"]


def test_the_global_model_of_fedsa_is_refused_with_the_reason_and_a_client_s_is_not(run_with, tmp_path: Path):
    folder, _ = run_with("fedsa")
    for use in (lambda: export_round(folder, tmp_path / "new", None, "", merged=False),
                lambda: open_chat(folder, 4)):  # fmt: skip
        with pytest.raises(UserError, match=r"fedsa leaves B at the clients, so there is no global model"):
            use()
    export_round(folder, tmp_path / "new", None, "math", merged=False)
    exported, shared = load_adapter(tmp_path / "new"), saved(folder, 2)
    own = load_state(folder / "clients/math", 3, False).arrays
    for key, value in exported.items():
        assert np.array_equal(value, own[key] if ".lora_B." in key else shared[key])


@pytest.mark.parametrize("aggregation", ["flora", "fedex"])
def test_chat_answers_with_what_was_added(run_with, monkeypatch: pytest.MonkeyPatch, aggregation: str):
    folder, _ = run_with(aggregation)
    close_clients()
    load_model.cache_clear()
    ask = open_chat(folder, 4)
    added = saved(folder, 2)["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"][:, 4:]
    assert added.any()
    uses = []

    def listen(base: Base, *rest: Any) -> list[Answer]:
        layer = base.model.get_submodule("model.layers.0.self_attn.q_proj")
        uses.append(layer.is_active and np.array_equal(layer.B["shared"][:, 4:], added))
        return [Answer()]

    monkeypatch.setattr("fedsdr.federation.export.generate", listen)
    ask("Why?")
    assert uses == [False, True]  # of the base and the global model


class Answer:
    text = ""


@pytest.mark.parametrize("aggregation", ["zeropad", "flexlora", "flora"])
def test_a_client_of_smaller_rank_trains_and_sends_its_own_ranks_alone(
    run_with, updates, monkeypatch: pytest.MonkeyPatch, aggregation: str
):
    """The other ranks are zero in both factors, and stay exactly so: no gradient, and nothing to decay."""
    after: dict[str, list[Any]] = {}
    local_update = client_round.local_update

    def spy(model, *rest, **more):
        metrics = local_update(model, *rest, **more)
        after.setdefault(here().partition(", ")[2], []).append(model.state("shared"))
        return metrics

    monkeypatch.setattr(client_round, "local_update", spy)
    chosen = {"lora.client_ranks.math": 1, "lora.client_ranks.general": 3, "client.weight_decay": 0.1}
    folder, events = run_with(aggregation, **chosen)
    ranks = {"finance": 4, "general": 3, "math": 1}
    for client, states in after.items():
        for state in states:
            for key, value in state.items():
                beyond = value[ranks[client] :] if ".lora_A." in key else value[:, ranks[client] :]
                assert not beyond.any()
    sizes = {event["client"]: event["num_bytes_up"] for event in events if event["event"] == "train"}
    assert sizes == {client: rank * sizes["math"] for client, rank in ranks.items()}
    for update in updates[1] + updates[2]:
        assert wire.rank_of(update.arrays) == ranks[update.client]
    assert wire.rank_of(saved(folder, 2)) == 4 + (16 if aggregation == "flora" else 0)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_small_messages_of_a_client_of_smaller_rank_are_added_up_as_they_should(
    run_with, updates, dtype: str
):
    """Its change covers its own ranks, and so does the rounding error."""
    folder, _ = run_with("zeropad", **{"lora.client_ranks.math": 1, "communication.dtype": dtype})
    before = wire.cut({key: value.numpy() for key, value in saved(folder, 1).items()}, 1)
    (update,) = [update for update in updates[2] if update.client == "math"]
    for key, value in update.arrays.items():
        assert 0 < np.abs(value - before[key]).max() < 0.1
    lost = load_state(folder / "clients/math", 3, False).arrays["error_feedback"]
    assert lost.size == sum(value.size for value in before.values())


def test_a_client_of_smaller_rank_that_sends_more_is_dropped(run_with, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wire, "cut", lambda tensors, rank: tensors)  # the server has its own name for it
    _, events = run_with("zeropad", **{"lora.client_ranks.math": 1, "server.num_rounds": 1})
    (dropped,) = [event for event in events if event["event"] == "dropped"]
    assert dropped["client"] == "math"
    assert "values is not float32 of shape" in dropped["reason"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"server.aggregation": "fedex", "server.optimizer": "fedavgm"}, "'fedex', which does not aggregate each number"),
        ({"server.aggregation": "flora", "communication.dtype": "int8"}, "'flora', which does not aggregate each number"),
        ({"server.aggregation": "fedrot", "communication.dtype": "float16"}, "rotates what a client sends, but not what"),
        ({"server.aggregation": "fedsa", "client.drift_correction": "fedprox"}, "which no broadcast anchors"),
        ({"server.aggregation": "average", "lora.client_ranks.math": 2}, "takes factors of one rank: .*'zeropad'"),
        ({"server.aggregation": "fedex", "lora.client_ranks.math": 2}, "takes factors of one rank"),
        ({"server.aggregation": "zeropad"}, "gives all clients one rank"),
        ({"server.aggregation": "zeropad", "lora.client_ranks.math": 2, "server.robust": "median"}, "with zeros"),
        ({"server.aggregation": "zeropad", "lora.client_ranks.maths": 2}, "names maths; the clients are finance, math"),
        ({"server.aggregation": "zeropad", "lora.client_ranks.math": 4}, "math = 4 is not below rank = 4"),
        (
            {"server.aggregation": "flora", "lora.client_ranks.math": 2, "lora.client_ranks.finance": 1},
            "above the rank of every client: set lora.rank = 2",
        ),
        ({"server.aggregation": "zeropad", "lora.client_ranks.math": 0}, "client_ranks.math = 0"),
        ({"method": "local-only", "server.aggregation": "flora"}, "'local-only', which sends nothing"),
        ({"server.rotation": 0.5}, "does nothing under server.aggregation = 'average': .* 'fedrot'"),
        ({"server.rotation_reference": "B"}, "server.rotation_reference = 'B' does nothing"),
        ({"server.aggregation": "fedrot", "server.rotation": 0.0}, "server.rotation = 0.0: should be greater than 0"),
    ],
    ids=str,
)  # fmt: skip
def test_choices_that_make_no_sense_are_refused_before_anything_is_paid_for(tiny_settings, settings, says):
    with pytest.raises(UserError, match=says):
        run(tiny_settings(**{"method": "fedit", "data.domains": ["finance", "math"]} | settings))


def test_ranks_of_clients_are_written_and_read_again(tiny_settings, tmp_path: Path):
    from fedsdr.recipe import dump_settings

    chosen = {"server.aggregation": "zeropad", "lora.client_ranks.math": 2}
    settings = tiny_settings(**chosen)
    (tmp_path / "config.toml").write_text(dump_settings(settings))
    again = load_settings(tmp_path / "config.toml")
    assert again == settings
    assert (again.lora.rank_of("math"), again.lora.rank_of("finance")) == (2, 4)


def test_the_last_rounds_adapters_are_averaged_at_the_end_and_training_does_not_see_it(run_with):
    def rounds(**more: Any) -> list[dict[str, torch.Tensor]]:
        folder, _ = run_with("average", **{"server.num_rounds": 3, **more})
        return [load_adapter(folder / f"server/round-000{number}") for number in (1, 2, 3)]

    plain, mean = rounds(), rounds(**{"server.mean_of_rounds": 2})
    for key, last in mean[2].items():
        assert torch.equal(mean[0][key], plain[0][key]) and torch.equal(mean[1][key], plain[1][key])
        torch.testing.assert_close(last, (plain[1][key] + plain[2][key]) / 2)
    assert not all(torch.equal(last, plain[2][key]) for key, last in mean[2].items())
