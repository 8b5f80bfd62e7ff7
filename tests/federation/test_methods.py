"""Differences of the methods in a whole run: the client's state, its messages, and its training data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fedsdr import methods
from fedsdr.client import round as client_round
from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.federation.client_context import close_clients
from fedsdr.federation.export import export_round
from fedsdr.federation.model_cache import load_model
from fedsdr.federation.run import run
from fedsdr.methods import DRIFT_CORRECTIONS, METHODS
from fedsdr.model.adapter_files import load_adapter
from fedsdr.progress import here
from fedsdr.run_folder import read_result
from fedsdr.storage import Event, read_json, read_lines

SCAFFOLD = {"client.drift_correction": "scaffold", "client.optimizer": "sgd", "client.max_grad_norm": 0}


@pytest.fixture(autouse=True)
def fresh_process() -> None:
    """Every test begins as a new process does."""
    close_clients()
    load_model.cache_clear()


@pytest.fixture
def run_method(tiny_settings: Callable[..., Settings]) -> Callable[..., tuple[Path, list[Event]]]:
    """Run two rounds of a method with two clients; return the folder and the training events."""

    def start(method: str, **more: Any) -> tuple[Path, list[Event]]:
        settings = tiny_settings(**{"method": method, "data.domains": ["finance", "math"],
                                    "server.num_rounds": 2, "eval.max_new_tokens": 2} | more)  # fmt: skip
        folder = run(settings).folder
        return folder, [e for e in read_lines(folder / "metrics.jsonl") if e["event"] == "train"]

    return start


@pytest.mark.parametrize(
    ("method", "starts_at_zero"), [("fedsdr", [True, False]), ("fedsdr-reset", [True] * 2)]
)
def test_the_private_adapter_is_kept_over_rounds_or_begun_anew(
    run_method, monkeypatch: pytest.MonkeyPatch, method: str, starts_at_zero: list[bool]
):
    found: dict[str, list[bool]] = {}
    local_update = client_round.local_update

    def spy(model, *rest, **more):
        found.setdefault(here().partition(", ")[2], []).append(model.is_zero("private"))
        return local_update(model, *rest, **more)

    monkeypatch.setattr(client_round, "local_update", spy)
    run_method(method)
    assert found == {"finance": starts_at_zero, "math": starts_at_zero}


def test_fedit_wide_is_fedit_at_twice_the_rank_and_the_same_scale(run_method):
    wide, _ = run_method("fedit-wide", **{"lora.rank": 2, "lora.alpha": 7.0})
    plain, _ = run_method("fedit", **{"lora.rank": 4, "lora.alpha": 14.0})
    files = [(folder / "server/round-0002" / name).read_bytes() for folder in (wide, plain)
             for name in ("adapter_model.safetensors", "adapter_config.json")]  # fmt: skip
    assert files[:2] == files[2:]


def test_local_only_sends_no_array_and_keeps_what_it_learnt(run_method):
    folder, events = run_method("local-only")
    assert {event["num_bytes_up"] for event in events} == {0}
    rounds = [e for e in read_lines(folder / "metrics.jsonl") if e["event"] == "round"]
    assert {event["num_bytes_down"] for event in rounds} == {0}
    with pytest.raises(UserError, match="no global model; name a client by --client"):
        export_round(folder, folder / "new", None, "", merged=False)
    export_round(folder, folder / "new", None, "math", merged=False)
    assert set(read_result(folder).final) == {"personalised"}  # a "global" row would be the base model
    assert len(events) == 4
    shared = [path.read_bytes() for path in sorted(folder.glob("server/round-*/adapter_model.safetensors"))]
    assert len(shared) == 3
    assert len(set(shared)) == 1
    private = {path.read_bytes() for path in folder.glob("clients/*/round-*/adapter_model.safetensors")}
    assert len(private) == 4  # of two clients and two rounds


def test_centralised_is_one_client_with_the_data_of_all(run_method):
    folder, events = run_method("centralised")
    assert [(event["client"], event["num_examples"]) for event in events] == [("pooled", 12)] * 2
    assert (folder / "evaluation" / "round-0002.json").is_file()


def test_mixed_goes_through_raw_and_rewritten_data_in_an_epoch(run_method):
    """Six examples and six rewritings in batches of two: six steps, where fedit takes three."""
    epochs = {"client.local_steps": 0, "client.local_epochs": 1}
    steps = {
        method: {event["train/shared/num_steps"] for event in run_method(method, **epochs)[1]}
        for method in ("fedit", "mixed")
    }
    assert steps == {"fedit": {3}, "mixed": {6}}


def test_two_stages_of_one_adapter_are_logged_apart(run_method):
    _, events = run_method("fedsd-then-raw")
    for event in events:
        assert event["train/shared-distilled/num_steps"] == event["train/shared-raw/num_steps"] == 2


def private_of(folder: Path, client: str, number: int) -> bytes:
    return (folder / "clients" / client / f"round-{number:04d}" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(("method", "view"), [("fdlora", "raw"), ("fedsdr-once", "distilled")])
def test_the_private_adapter_learns_once_whenever_a_client_is_drawn(
    run_method, capsys, method: str, view: str
):
    """Its steps come on top of the budget of a round, are announced at the start, and logged in the first round."""
    folder, events = run_method(method, **{"fdlora.before_steps": 5, "client.budget": "per_round"})
    for event in events:
        assert event["train/shared/num_steps"] == 2
        assert event.get("train/before-private/num_steps") == (5 if event["round"] == 1 else None)
    assert f"before round 1, at each client: private on {view} 5 steps" in capsys.readouterr().err
    for client in ("finance", "math"):
        assert private_of(folder, client, 1) == private_of(folder, client, 2)
    assert "steps before-private" in (folder / "report.html").read_text()

    drawn = {"server.clients_per_round": 1, "server.num_rounds": 3, "fdlora.before_steps": 5}
    other, events = run_method(method, **drawn)
    assert {event["client"] for event in events} == {"finance", "math"}
    for event in events:
        assert private_of(other, event["client"], event["round"]) == private_of(folder, event["client"], 1)


def test_fdlora_takes_the_steps_of_a_stage_before_the_rounds_unless_told_otherwise(run_method):
    _, events = run_method("fdlora", **{"client.local_steps": 3})
    assert [event["train/before-private/num_steps"] for event in events if event["round"] == 1] == [3, 3]


def test_feddpa_weighs_each_test_prompt_and_says_how(run_method):
    folder, _ = run_method("feddpa", **{"feddpa.max_weight": 0.3})
    records = read_lines(folder / "clients/math/evaluation/round-0002-personalised.jsonl")
    assert len(records) == 2
    assert all(0 < record["private_weight"] <= 0.3 for record in records)
    assert len({record["private_weight"] for record in records}) == 2
    assert "personalised" in read_json(folder / "evaluation/round-0002.json")


def test_fedala_with_weights_that_stay_at_one_is_fedit(run_method):
    """Its personalised model equals the client's message: its own adapter after the round."""
    still, _ = run_method("fedala", **{"fedala.rate": 1e-30})
    fedit, _ = run_method("fedit")
    moved, events = run_method("fedala", **{"fedala.rate": 1e6})
    names = [f"server/round-000{number}/adapter_model.safetensors" for number in range(3)]
    assert [(still / name).read_bytes() for name in names] == [(fedit / name).read_bytes() for name in names]
    # In round 1 there is nothing of its own yet.
    assert [(moved / name).read_bytes() == (still / name).read_bytes() for name in names] == [
        True,
        True,
        False,
    ]
    assert ["train/weights/num_steps" in event for event in events] == [
        event["round"] == 2 for event in events
    ]


def test_the_personalised_model_of_one_fedala_client_is_the_global_one(run_method):
    """The average over one client is its own adapter, and it receives the same back: nothing is left to learn."""
    folder, _ = run_method("fedala", **{"data.domains": ["math"]})
    scores = read_json(folder / "evaluation/round-0002.json")
    assert scores["personalised"] == scores["global"]
    assert (
        load_adapter(folder / "clients/math/round-0002").keys()
        == load_adapter(folder / "server/round-0002").keys()
    )


@pytest.mark.parametrize("method", ["fedit", "fedsdr"])
def test_ffa_never_sends_a_and_leaves_it_as_it_was_drawn(run_method, method: str):
    """The private adapter, which is not averaged, learns both factors."""
    folder, events = run_method(method, **{"server.aggregation": "ffa"})
    rounds = [load_adapter(folder / "server" / f"round-{number:04d}") for number in range(3)]
    for key, drawn in rounds[0].items():
        for later in rounds[1:]:
            assert torch.equal(later[key], drawn) == (".lora_A." in key)
    num_bytes = sum(value.nbytes for key, value in rounds[0].items() if ".lora_B." in key)
    assert {event["num_bytes_up"] for event in events} == {num_bytes}
    if method == "fedsdr":
        private = [load_adapter(folder / "clients/math" / f"round-000{number}") for number in (1, 2)]
        assert not any(torch.equal(private[0][key], private[1][key]) for key in private[0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"server.aggregation": "flexlora", "server.optimizer": "fedadam"}, "each number for itself"),
        ({"server.aggregation": "flexlora", "server.robust": "median"}, "each number for itself"),
        ({"server.robust": "trimmed-mean"}, "leaves a robust aggregator no client to withstand"),
        ({"client.mu": 0.5}, "does nothing under client.drift_correction = 'none'"),
        (
            {"method": "local-only", "server.optimizer": "fedadam"},
            "method = 'local-only', which sends nothing",
        ),
        ({"server.num_byzantine": 1}, "does nothing under server.robust = 'none'"),
        (
            {"server.robust": "krum", "server.num_byzantine": 1},
            "needs 5 clients in each round, and 2 are sampled",
        ),
        ({"fedala.rate": 0.5}, "fedala.rate = 0.5 does nothing under method = 'fedit'"),
        ({"method": "fdlora", "feddpa.max_weight": 0.4}, "feddpa.max_weight = 0.4 does nothing"),
        (
            {"method": "fedala", "client.drift_correction": "fedprox"},
            "method = 'fedala', which does not begin a round at the broadcast adapter",
        ),
        ({"method": "fedala", "server.aggregation": "flexlora"}, "set method to any but 'fedala'"),
        ({"server.robust": "medain"}, "nearest first: median"),
        ({"client.drift_correction": "fedproxy"}, "known, nearest first: fedprox"),
        ({"client.drift_correction": "scaffold"}, "max_grad_norm = 1.0 .*: set client.max_grad_norm to 0"),
        (SCAFFOLD | {"client.optimizer": "adamw"}, "set client.optimizer to 'sgd'"),
        (SCAFFOLD | {"client.drift_correction": "scaffold-adamw"}, "set client.optimizer to 'adamw'"),
        (SCAFFOLD | {"client.final_rate": 0.0}, "which makes the last round's rate 0"),
        (SCAFFOLD | {"client.mu": 0.5}, "does nothing under client.drift_correction = 'scaffold'"),
        (SCAFFOLD | {"server.aggregation": "flexlora"}, "set server.aggregation to 'average' or"),
        (SCAFFOLD | {"server.robust": "median"}, "set server.robust to 'none'"),
        (SCAFFOLD | {"communication.dtype": "int8"}, "set communication.dtype to 'float32'"),
        (SCAFFOLD | {"method": "local-only"}, "method = 'local-only', which sends nothing"),
    ],
    ids=str,
)
def test_choices_that_make_no_sense_together_are_refused_before_anything_is_paid_for(
    run_method, settings, says
):
    with pytest.raises(UserError, match=says):
        run_method(**{"method": "fedit"} | settings)


def test_a_method_is_added_by_one_row(run_method, monkeypatch: pytest.MonkeyPatch):
    """The row that docs/methods.md shows, taken from there; nothing else knows methods by name."""
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    row = page.partition("```python\n")[2].partition("```")[0]
    for name, method in eval(f"{{{row}}}", vars(methods)).items():
        monkeypatch.setitem(METHODS, name, method)  # type: ignore[arg-type]
    folder, events = run_method("raw-then-distilled")
    assert len(events) == 4
    assert set(methods.METHODS["raw-then-distilled"].stage_names()) == {"shared-raw", "shared-distilled"}
    assert (folder / "clients" / "math" / "distilled.jsonl").is_file()
    assert load_adapter(folder / "server" / "round-0002")


def kept_control_variates(folder: Path, server_round: int) -> list[np.ndarray]:
    paths = sorted(folder.glob(f"clients/*/round-{server_round:04d}/kept.safetensors"))
    return [load_file(path)["control_variates"] for path in paths]


@pytest.mark.parametrize(
    "drift_correction", [name for name, row in DRIFT_CORRECTIONS.items() if row.has_control_variates]
)
def test_the_servers_control_variate_is_the_mean_of_the_clients(run_method, drift_correction: str):
    """From zero, with all clients in every round, c is the mean of c_k."""
    settings = SCAFFOLD | {
        "client.drift_correction": drift_correction,
        "client.optimizer": DRIFT_CORRECTIONS[drift_correction].optimizer,
    }
    folder, _ = run_method("fedit", **settings, **{"server.num_rounds": 3})
    for server_round in (2, 3):
        own = kept_control_variates(folder, server_round)
        server = load_file(folder / f"server/round-{server_round:04d}/optimizer.safetensors")[
            "control_variates"
        ]
        assert len(own) == 2
        np.testing.assert_allclose(server, np.mean(own, axis=0), atol=1e-6 * np.abs(server).max())
        assert not np.allclose(own[0], own[1], atol=0.1 * np.abs(server).max())


def test_steps_of_all_stages_of_the_shared_adapter_are_counted_and_of_no_other(run_method):
    """Alone, c_k = c, so c_k+ = (x - y) / (K lr): K is 2 + 2, and of fedsdr, whose first stage is private, 2.

    lr is the round's: 0.5 in the first, 0.2 in the second.
    """
    for method, num_steps in (("fedsd-then-raw", 4), ("fedsdr", 2), ("fedsdr-joint", 2)):
        rates = {"client.learning_rate": 0.5, "client.final_rate": 0.4}
        folder, _ = run_method(method, **SCAFFOLD, **rates, **{"data.domains": ["math"]})
        for server_round, rate in ((1, 0.5), (2, 0.2)):
            x, y = (
                load_adapter(folder / "server" / f"round-000{number}")
                for number in (server_round - 1, server_round)
            )
            moved = np.concatenate([(x[key] - y[key]).numpy().ravel() for key in sorted(x)])
            (own,) = kept_control_variates(folder, server_round)
            np.testing.assert_allclose(own, moved / (num_steps * rate), rtol=1e-4, atol=1e-6)
            assert own.any()


def test_with_ffa_only_b_has_control_variates(run_method):
    folder, events = run_method("fedsdr", **SCAFFOLD, **{"server.aggregation": "ffa"})
    drawn = load_adapter(folder / "server/round-0000")
    num_values = sum(value.numel() for key, value in drawn.items() if ".lora_B." in key)
    assert [own.size for own in kept_control_variates(folder, 2)] == [num_values] * 2
    assert {event["num_bytes_up"] for event in events} == {2 * 4 * num_values}
