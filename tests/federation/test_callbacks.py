"""Callbacks and loggers: what they see of a run, and that the run does not see them."""

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsdr.callbacks import Callback, checked_callbacks
from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.federation import client_context
from fedsdr.federation.run import resume, run
from fedsdr.run_folder import Result, RunFolder
from fedsdr.storage import read_lines

QUICK = {
    "data.domains": ["finance", "math"],
    "server.num_rounds": 2,
    "client.local_steps": 2,
    "eval.rewritings": False,
    "eval.max_new_tokens": 2,
    "method": "dual-raw",
    "lora.dropout": 0.5,
}


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    yield
    client_context.close_clients()


@pytest.fixture
def quick(tiny_settings: Callable[..., Settings]) -> Callable[..., Settings]:
    """Settings of a run with two clients, two stages, two rounds and dropout."""
    return lambda **overrides: tiny_settings(**QUICK | overrides)


class Watcher(Callback):
    """Writes down what it sees."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def on_start(self, settings: Settings, server_round: int) -> None:
        self.seen.append(("start", server_round))

    def on_step(self, step: dict[str, Any]) -> None:
        self.seen.append(("step", step))

    def on_round(self, record: dict[str, Any]) -> None:
        self.seen.append(("round", record))

    def on_evaluate(self, record: dict[str, Any]) -> None:
        self.seen.append(("evaluate", record))

    def on_end(self, result: Result | None) -> None:
        self.seen.append(("end", result))

    def of(self, kind: str) -> list[Any]:
        return [value for name, value in self.seen if name == kind]


class Vandal(Watcher):
    """Spoils all that it is given, and every random state."""

    def on_start(self, settings: Settings, server_round: int) -> None:
        settings.model.template_args["spoilt"] = 1
        super().on_start(settings, server_round)

    def on_step(self, step: dict[str, Any]) -> None:
        step.clear()
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002

    def on_round(self, record: dict[str, Any]) -> None:
        record.clear()

    on_evaluate = on_round


class Failing(Callback):
    def on_step(self, step: dict[str, Any]) -> None:
        if step["step"] == 3:
            raise ValueError("the disk of the logger is full")


def adapters(settings: Settings) -> list[bytes]:
    """The bytes of every round's shared adapter, and of what clients keep."""
    folder = RunFolder(settings.run.dir)
    return [path.read_bytes() for path in sorted(folder.path.rglob("*.safetensors"))]


def test_a_callback_sees_each_step_round_and_evaluation_once_and_in_order(quick):
    watcher = Watcher()
    settings = quick()
    result = run(settings, callbacks=[watcher])
    kinds = [name for name, _ in watcher.seen]
    one_round = ["step"] * (2 * 2 * 2) + ["round"]  # clients, stages, steps of each
    assert kinds == ["start", "evaluate", *one_round, *one_round, "evaluate", "end"]
    finance = [step for step in watcher.of("step") if step["client"] == "finance"]
    assert [step["step"] for step in finance] == list(range(1, 9))
    assert [step["stage"] for step in finance[:4]] == ["private", "private", "shared", "shared"]
    first, last = watcher.of("round")
    mean = np.mean([step["loss"] for step in finance[2:4]])
    assert first["client/finance/train/shared/loss"] == pytest.approx(mean)
    both = [first[f"client/{client}/train/shared/loss"] for client in ("finance", "math")]
    assert first["train/shared/loss"] == pytest.approx(sum(both) / 2)
    base, final = watcher.of("evaluate")
    assert base["eval/global/mean/loss"] == result.base["global"]["mean"]["loss"]
    assert final["eval/personalised/math/loss"] == result.final["personalised"]["math"]["loss"]
    assert watcher.of("end") == [result]
    assert result.history == [base, {**first}, {**last, **final}]
    frame = result.to_pandas()
    assert frame["train/shared/loss"][2] == last["train/shared/loss"]
    assert frame["eval/global/mean/loss"][0] == base["eval/global/mean/loss"]


def test_a_run_has_the_same_bytes_with_a_callback_that_spoils_what_it_is_given(quick):
    plain, watched = quick(), quick()
    run(plain)
    vandal = Vandal()
    run(watched, callbacks=[vandal])
    assert [kind for kind, _ in vandal.seen] == ["start", "end"]
    assert adapters(plain) == adapters(watched)
    logs = [read_lines(RunFolder(settings.run.dir).log) for settings in (plain, watched)]
    for event in (event for log in logs for event in log):
        for key in ("seconds", "peak_memory"):
            event.pop(key, None)
    assert logs[0] == logs[1]


def test_an_error_names_the_callback_and_the_run_can_be_resumed_without_it(quick):
    settings, watcher = quick(), Watcher()
    with pytest.raises(
        UserError, match=r"callback Failing\.on_step: ValueError: the disk of the logger is full"
    ):
        run(settings, callbacks=[Failing(), watcher])
    assert watcher.seen[-1] == ("end", None)
    whole = quick()
    run(whole)
    resume(settings.run.dir)
    assert adapters(settings) == adapters(whole)


class Stopping(Watcher):
    def on_round(self, record: dict[str, Any]) -> None:
        super().on_round(record)
        raise KeyboardInterrupt


def test_steps_after_a_resume_continue_the_clients_count(quick):
    settings, first, second = quick(), Stopping(), Watcher()
    with pytest.raises(KeyboardInterrupt):
        run(settings, callbacks=[first])
    resume(settings.run.dir, callbacks=[second])
    assert first.of("end") == [None]
    assert second.of("start") == [1]
    assert [record["round"] for record in first.of("round") + second.of("round")] == [1, 2]
    math = [step["step"] for step in first.of("step") + second.of("step") if step["client"] == "math"]
    assert math == list(range(1, 9))


def test_no_callback_sees_a_clients_steps_under_privacy(quick):
    watcher = Watcher()
    run(quick(**{"privacy.kind": "central", "privacy.source": "seeded"}), callbacks=[watcher])
    assert watcher.of("step") == []
    assert len(watcher.of("round")) == 2


def test_loggers_are_no_part_of_what_decides_a_runs_bits(quick):
    settings = quick()
    with pytest.raises(KeyboardInterrupt):
        run(settings, callbacks=[Stopping()])
    config = RunFolder(settings.run.dir).config
    text = config.read_text()
    assert "log_to = []" in text
    config.write_text(text.replace("log_to = []", 'log_to = ["tensorboard"]'))
    pytest.importorskip("tensorboard")
    resume(settings.run.dir)
    whole = quick()
    run(whole)
    assert adapters(settings) == adapters(whole)


def test_one_callback_needs_no_list():
    one = Callback()
    assert checked_callbacks(one) == checked_callbacks((one,)) == [one]


def test_an_unknown_logger_and_one_that_is_not_installed_are_refused_before_anything_is_written(
    quick, monkeypatch
):
    with pytest.raises(UserError, match=r"run\.log_to.*'tensorboard', 'wandb', 'mlflow' or 'trackio'"):
        quick(**{"run.log_to": ["tensorbord"]})
    monkeypatch.setattr("fedsdr.loggers.find_spec", lambda name: None)
    settings = quick(**{"run.log_to": ["mlflow"]})
    with pytest.raises(UserError, match=r"requires mlflow: pip install 'fedsdr\[mlflow\]'"):
        run(settings)
    assert not RunFolder(settings.run.dir).config.exists()


@pytest.fixture
def stopped_and_resumed(
    quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[Result, list[Any]]]:
    """Return a function: a run that logs to a library, is stopped after round 1 and resumed, and its steps."""
    monkeypatch.chdir(tmp_path)

    def make(logger: str) -> tuple[Result, list[Any]]:
        pytest.importorskip(logger)
        settings, first, second = quick(**{"run.log_to": [logger]}), Stopping(), Watcher()
        with pytest.raises(KeyboardInterrupt):
            run(settings, callbacks=[first])
        result = resume(settings.run.dir, callbacks=[second])
        return result, [step for step in first.of("step") + second.of("step") if step["client"] == "math"]

    return make


LOSS = "train/shared/loss"


def expected(result: Result, key: str) -> list[tuple[int, float]]:
    return [(record["round"], record[key]) for record in result.history if key in record]


def test_tensorboard_has_the_curves_of_a_run_and_of_its_continuation(stopped_and_resumed):
    result, steps = stopped_and_resumed("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(result.folder / "tensorboard"))
    found.Reload()
    for key in (LOSS, "eval/global/mean/loss", "client/math/train/private/loss"):
        curve = [(event.step, event.value) for event in found.Scalars(key)]
        assert curve == [(n, pytest.approx(value)) for n, value in expected(result, key)]
    curve = [(event.step, event.value) for event in found.Scalars("step/math/shared/loss")]
    shared = [step for step in steps if step["stage"] == "shared"]
    assert curve == [(step["step"], pytest.approx(step["loss"])) for step in shared]


def test_mlflow_has_one_run_with_settings_and_curves(stopped_and_resumed, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    result, steps = stopped_and_resumed("mlflow")
    from mlflow import MlflowClient

    client = MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("fedsdr").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["lora.dropout"] == "0.5"
    assert found.info.run_name == result.folder.name
    curve = [(one.step, one.value) for one in client.get_metric_history(found.info.run_id, LOSS)]
    assert curve == expected(result, LOSS)
    curve = client.get_metric_history(found.info.run_id, "step/math/private/loss")
    private = [(step["step"], step["loss"]) for step in steps if step["stage"] == "private"]
    assert [(one.step, one.value) for one in curve] == private


def read_wandb(path: Path) -> list[dict[str, str]]:
    """Rows of the history in an offline run's file: 7 bytes of header, then LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, rows, whole = path.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:  # a block ends with fewer bytes than a header has
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            items = Record.FromString(whole).history.item
            rows.append({item.key or "/".join(item.nested_key): item.value_json for item in items})
            whole = b""
    return rows


def test_wandb_has_both_parts_of_a_run_under_one_id(stopped_and_resumed, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    result, steps = stopped_and_resumed("wandb")
    paths = sorted(result.folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(paths) == 2
    assert len({path.stem for path in paths}) == 1
    curve, seen = [], []
    for path in paths:
        for row in read_wandb(path):
            if LOSS in row:
                curve.append((int(row["round"]), float(row[LOSS])))
            if "step/math/shared/loss" in row:
                seen.append((int(row["step"]), float(row["step/math/shared/loss"])))
    assert curve == expected(result, LOSS)
    assert seen == [(step["step"], step["loss"]) for step in steps if step["stage"] == "shared"]


def test_trackio_has_one_run_with_its_curves(stopped_and_resumed, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read by the import
    pytest.importorskip("trackio")
    result, steps = stopped_and_resumed("trackio")
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    assert capsys.readouterr().out == ""  # standard output is for results
    (found,) = trackio.Api().runs("fedsdr")
    rows = SQLiteStorage.get_logs("fedsdr", found.name, run_id=found.id)
    assert [(row["step"], row[LOSS]) for row in rows if LOSS in row] == expected(result, LOSS)
    curve = [(row["step"], row["step/math/shared/loss"]) for row in rows if "step/math/shared/loss" in row]
    assert curve == [(step["step"], step["loss"]) for step in steps if step["stage"] == "shared"]
