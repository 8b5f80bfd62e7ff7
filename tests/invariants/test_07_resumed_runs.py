"""Invariant 7: a run resumed after a kill at any point leaves the same bytes as an uninterrupted one."""

import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsdr
from fedsdr.config import Settings
from fedsdr.model.adapter_files import WEIGHTS
from fedsdr.run_folder import read_settings

RUN = {"method": "fedsdr", "eval.every": 1}
Results = Callable[[Path], dict[str, Any]]
KillAt = Callable[..., AbstractContextManager[None]]
Resumed = Callable[..., dict[str, Any]]


@pytest.fixture
def resumed(
    run_settings: Callable[..., Settings],
    results: Results,
    kill_at: KillAt,
    fresh_process: Callable[[], None],
) -> Resumed:
    """Results of a run that was killed at some call, and resumed by another process."""

    def run_twice(chosen: dict[str, Any], *kill: Any, **when: Any) -> dict[str, Any]:
        settings = run_settings(**chosen)
        with kill_at(*kill, **when):
            fedsdr.run(settings)
        fresh_process()
        return results(fedsdr.resume(Path(settings.run.dir)).folder)

    return run_twice


def lines_with_the_last_torn(path: Path, records: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text[:-9])


def half_of_the_adapter(folder: Path, *rest: Any) -> None:
    (folder / WEIGHTS).write_bytes(b"half of it")


KILLS = {
    "in the second group of batches of rewriting": ("fedsdr.distill.rewrite.generate", 2),
    "with part of a batch in the cache": ("fedsdr.distill.rewrite.append_lines", 2, lines_with_the_last_torn),
    "in the middle of training": ("fedsdr.client.update.response_loss", 20),
    "after a client kept its private adapter": ("fedsdr.client.round.save_state", 5, None, True),
    "while a client's folder is written": ("fedsdr.client.state.save_adapter", 5, half_of_the_adapter),
    "after a client's folder was written, not renamed": ("fedsdr.client.state.save_adapter", 5, None, True),
    "while the first adapter is written": ("fedsdr.server.checkpoint.save_adapter", 1, half_of_the_adapter),
    "while a round is written": ("fedsdr.server.checkpoint.save_adapter", 3, half_of_the_adapter),
    "in the middle of the log": ("fedsdr.federation.server_app.append_lines", 5, lines_with_the_last_torn),
    "between log and round": ("fedsdr.federation.server_app.save_round", 3),
    "after a round, before its evaluation": ("fedsdr.federation.server_app.save_round", 3, None, True),
    "during evaluation": ("fedsdr.federation.client_app._evaluate", 11),
    "between the log and the scores": ("fedsdr.federation.server_app.write_json", 2),
    "after the last scores, before the end is logged": (
        "fedsdr.federation.server_app.write_json",
        3,
        None,
        True,
    ),
}


@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS)
def test_killed_and_resumed_run_leaves_the_same_bytes(
    kill: tuple[Any, ...],
    finished: Callable[..., Path],
    results: Results,
    resumed: Resumed,
) -> None:
    assert resumed(RUN, *kill) == results(finished(**RUN))


def test_run_killed_again_and_again_leaves_the_same_bytes(
    run_settings: Callable[..., Settings],
    finished: Callable[..., Path],
    results: Results,
    kill_at: KillAt,
    fresh_process: Callable[[], None],
) -> None:
    """Whatever a run promises to keep passes `os.fsync`; here each process dies at some such call."""
    settings = run_settings(**RUN)
    folder = Path(settings.run.dir)
    for call in count(1, step=4):
        fresh_process()
        with kill_at("os.fsync", call, late=call % 8 == 1, surely=False):
            fedsdr.resume(folder) if (folder / "config.toml").exists() else fedsdr.run(settings)
            break
    assert call > 20
    assert results(folder) == results(finished(**RUN))


def test_client_asked_again_starts_where_it_started_before(
    run_settings: Callable[..., Settings],
    finished: Callable[..., Path],
    results: Results,
    kill_at: KillAt,
    fresh_process: Callable[[], None],
) -> None:
    """A client that finished a round which the server did not replaces its version of it, killed or not."""
    settings = run_settings(**RUN)
    folder = Path(settings.run.dir)
    with kill_at("fedsdr.federation.server_app.save_round", 3):
        fedsdr.run(settings)
    assert (folder / "clients/math/round-0002").exists() and not (folder / "server/round-0002").exists()
    fresh_process()
    with kill_at("pathlib.Path.rename", 1):  # the old version is gone, the new one not in its place
        fedsdr.resume(folder)
    assert not (folder / "clients/finance/round-0002").exists()
    fresh_process()
    assert results(fedsdr.resume(folder).folder) == results(finished(**RUN))


@pytest.mark.parametrize("method", ["fedit", "fedsdr"])
def test_what_small_messages_lost_is_sent_after_a_kill_too(
    run_settings: Callable[..., Settings],
    finished: Callable[..., Path],
    results: Results,
    kill_at: KillAt,
    fresh_process: Callable[[], None],
    method: str,
) -> None:
    """Killed when two clients had finished round 2, and so had new residuals, and the server had not."""
    chosen = {"method": method, "communication.dtype": "int8"}
    settings = run_settings(**chosen)
    folder = Path(settings.run.dir)
    with kill_at("fedsdr.client.round.save_state", 5, late=True):
        fedsdr.run(settings)
    assert (folder / "clients/general/round-0002/kept.safetensors").exists()
    fresh_process()
    assert results(fedsdr.resume(folder).folder) == results(finished(**chosen))


@pytest.mark.parametrize("method", ["fedsdr-drop", "fedsdr-once", "token-mask", "feddpa", "fdlora", "fedala"])
@pytest.mark.parametrize(
    "kill",
    [
        ("fedsdr.client.update.response_loss", 3),  # with fdlora, in the stage before round 1
        ("fedsdr.client.round.save_state", 2, None, True),
        ("fedsdr.client.round.save_state", 5, None, True),
        ("fedsdr.federation.server_app.write_json", 2),
    ],
    ids=["in training", "after a client's round 1", "after a client's round 2", "before the scores"],
)
def test_personal_methods_resume_to_the_same_bytes(
    finished: Callable[..., Path],
    results: Results,
    resumed: Resumed,
    method: str,
    kill: tuple[Any, ...],
) -> None:
    """Training before round 1 is neither lost nor repeated; the same holds for saved weights."""
    chosen = {"method": method, "eval.every": 1, "fedala.rate": 1e3} if method == "fedala" else {
        "method": method, "eval.every": 1}  # fmt: skip
    assert resumed(chosen, *kill) == results(finished(**chosen))


@pytest.mark.parametrize(
    "chosen",
    [
        *({"server.aggregation": name} for name in ("fedsa", "flora", "fedex", "fedrot")),
        {"server.aggregation": "zeropad", "lora.client_ranks.math": 1},
    ],
    ids=lambda chosen: chosen["server.aggregation"],
)
def test_what_a_aggregation_keeps_is_there_after_a_kill(
    finished: Callable[..., Path],
    results: Results,
    resumed: Resumed,
    chosen: dict[str, Any],
) -> None:
    """Killed in round 3, when all clients had answered and the server had not written the round."""
    chosen = {"method": "fedsdr", "server.num_rounds": 3, **chosen}
    found = resumed(chosen, "fedsdr.federation.server_app.save_round", 4)
    assert found == results(finished(**chosen))


def test_what_is_rehearsed_is_made_up_again_after_a_kill(
    finished: Callable[..., Path],
    results: Results,
    resumed: Resumed,
) -> None:
    chosen = {"method": "fedsdr", "client.drift_correction": "rehearsal", "client.mu": 1.0}
    found = resumed(chosen, "fedsdr.client.round.save_state", 5, late=True)
    assert found == results(finished(**chosen))
    assert found != results(finished(method="fedsdr"))


@pytest.mark.parametrize(
    ("place", "call"), [("client.round.save_state", 8), ("federation.server_app.save_round", 4)]
)
def test_control_variates_go_on_after_a_kill(
    run_settings: Callable[..., Settings],
    finished: Callable[..., Path],
    results: Results,
    kill_at: KillAt,
    fresh_process: Callable[[], None],
    scaffold: dict[str, Any],
    place: str,
    call: int,
) -> None:
    """Killed in round 3: when two clients had renewed theirs, and when the server had renewed its mean."""
    chosen = {"method": "fedsdr", "server.num_rounds": 4, "server.optimizer": "fedavgm", **scaffold}
    settings = run_settings(**chosen)
    folder = Path(settings.run.dir)
    with kill_at(f"fedsdr.{place}", call, late=place.endswith("state")):
        fedsdr.run(settings)
    assert (folder / "clients/general/round-0003").exists() and not (folder / "server/round-0003").exists()
    fresh_process()
    found = results(fedsdr.resume(folder).folder)
    assert found == results(finished(**chosen))
    assert "clients/math/round-0004/kept.safetensors" in found


def test_drawn_clients_are_the_same_after_a_kill(
    finished: Callable[..., Path],
    results: Results,
    resumed: Resumed,
) -> None:
    drawn = {**RUN, "server.clients_per_round": 2, "server.num_rounds": 4, "eval.every": 0}
    found = resumed(drawn, "fedsdr.client.round.save_state", 6, late=True)
    assert found == results(finished(**drawn))


def test_resuming_a_finished_run_changes_nothing(
    run_settings: Callable[..., Settings], results: Results, fresh_process: Callable[[], None]
) -> None:
    folder = fedsdr.run(run_settings(**RUN)).folder
    before = results(folder)
    fresh_process()
    fedsdr.resume(folder)
    assert results(folder) == before


def started(run_settings: Callable[..., Settings], kill_at: KillAt) -> Path:
    settings = run_settings(**RUN)
    with kill_at("fedsdr.federation.server_app.save_round", 1):
        fedsdr.run(settings)
    return Path(settings.run.dir)


@pytest.mark.parametrize(
    ("section", "key"),
    [("versions", "torch"), ("versions", "transformers"), ("machine", "processor"), ("model", "identity"),
     ("data", "hash")],
)  # fmt: skip
def test_resume_on_a_changed_machine_is_refused(
    run_settings: Callable[..., Settings],
    kill_at: KillAt,
    fresh_process: Callable[[], None],
    section: str,
    key: str,
) -> None:
    folder = started(run_settings, kill_at)
    path = folder / "environment.json"
    environment = json.loads(path.read_text())
    environment[section][key] = "of old"
    path.write_text(json.dumps(environment))
    fresh_process()
    with pytest.raises(fedsdr.UserError, match=f"cannot continue: {section} {key} was of old"):
        fedsdr.resume(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("threads", "2"), ("dtype", '"bfloat16"'), ("attention", '"sdpa"'), ("final_rate", "0.2")],
)
def test_resume_with_changed_settings_is_refused(
    run_settings: Callable[..., Settings],
    kill_at: KillAt,
    fresh_process: Callable[[], None],
    key: str,
    value: str,
) -> None:
    folder = started(run_settings, kill_at)
    path = folder / "config.toml"
    text, num = re.subn(rf"^{key} = .*$", f"{key} = {value}", path.read_text(), count=1, flags=re.MULTILINE)
    assert num == 1
    path.write_text(text)
    fresh_process()
    with pytest.raises(fedsdr.UserError, match=r"cannot continue: config\.toml"):
        fedsdr.resume(folder)


def test_settings_fixed_at_the_start_hold_on_resume(
    run_settings: Callable[..., Settings],
    kill_at: KillAt,
    fresh_process: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = run_settings(**{**RUN, "run.threads": 0, "model.dtype": "auto", "model.attention": "auto"})
    folder = Path(settings.run.dir)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with kill_at("fedsdr.federation.server_app.save_round", 2):
        fedsdr.run(settings)
    fixed = read_settings(folder)
    assert fixed.run.threads == 2
    assert fixed.model.dtype in ("float32", "bfloat16")
    assert fixed.model.attention != "auto"
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    torch.set_num_threads(1)
    fresh_process()
    fedsdr.resume(folder)
    assert torch.get_num_threads() == 2
    assert read_settings(folder) == fixed
