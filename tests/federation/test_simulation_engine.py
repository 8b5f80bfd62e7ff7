"""The simulation engine: several clients at a time on Ray, and the bytes of the local engine. Skips without Ray."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from flwr.clientapp import ClientApp

from fedsdr.config import Run, Settings
from fedsdr.errors import UserError
from fedsdr.federation.environment import num_workers
from fedsdr.federation.run import run
from fedsdr.federation.simulation_engine import _start
from fedsdr.run_folder import RunFolder

pytest.importorskip("ray")
ON_RAY = {"run.engine": "simulation", "run.workers": 2, "run.threads": 1}
SCAFFOLD = {"client.drift_correction": "scaffold", "client.optimizer": "sgd", "client.max_grad_norm": 0}
SHORT = {"server.num_rounds": 2, "client.local_steps": 2, "data.domains": ["finance", "math", "code"]}


def left_by(folder: Path) -> dict[str, bytes]:
    """What a run computed: adapters of all rounds, rewritings, answers, private adapters."""
    kinds = ("*.safetensors", "distilled*.jsonl", "evaluation/*.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() for kind in kinds for path in folder.rglob(kind)}


def call(function: str, argument: object) -> subprocess.Popen:
    """Call a function of `federation.run` in its own process, as intended for Ray's driver."""
    script = (
        f"from fedsdr.config import Settings; from fedsdr.federation.run import *; {function}({argument})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script], start_new_session=True, stderr=subprocess.PIPE, text=True
    )


def run_on_ray(settings: Settings) -> subprocess.Popen:
    return call("run", f"Settings(**{settings.model_dump()!r})")


def test_several_workers_give_the_bytes_of_the_local_engine(
    tmp_path: Path, tiny_settings: Callable[..., Settings]
):
    run(tiny_settings(**SHORT | SCAFFOLD | {"run.threads": 1, "run.dir": tmp_path / "local"}))
    process = run_on_ray(tiny_settings(**SHORT | SCAFFOLD | ON_RAY | {"run.dir": tmp_path / "ray"}))
    said = process.communicate(timeout=500)[1]
    assert process.returncode == 0, said
    local, ray = left_by(tmp_path / "local"), left_by(tmp_path / "ray")
    assert len(local) > 10
    assert local.keys() == ray.keys()
    assert {name for name, found in ray.items() if found != local[name]} == set()
    assert RunFolder(tmp_path / "local").evaluations() == RunFolder(tmp_path / "ray").evaluations()


def test_a_run_on_ray_goes_on_after_a_kill_with_equal_bytes(
    tmp_path: Path, tiny_settings: Callable[..., Settings]
):
    settings = SHORT | {"server.num_rounds": 3}
    run(tiny_settings(**settings | {"run.dir": tmp_path / "whole", "run.threads": 1}))
    process = run_on_ray(tiny_settings(**settings | ON_RAY | {"run.dir": tmp_path / "killed"}))
    folder = RunFolder(tmp_path / "killed")
    for _ in range(600):
        if folder.path.exists() and folder.last_round() >= 1:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not folder.is_finished()
    process = call("resume", repr(str(folder.path)))
    said = process.communicate(timeout=500)[1]
    assert process.returncode == 0, said
    assert left_by(folder.path) == left_by(tmp_path / "whole")


@pytest.mark.parametrize(
    ("num_gpus", "chosen", "each", "threads"),
    [
        (0, {}, 0.0, 16),
        (8, {}, 1.0, 2),
        (2, {"gpus_per_client": 0.5}, 0.5, 4),
        (8, {"workers": 4, "threads": 3}, 1.0, 3),
    ],
)
def test_workers_share_all_gpus_and_none_is_hidden_from_them(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, chosen: dict, each: float, threads: int
):
    """A worker that asks Ray for no GPU sees none, and would train on the processor beside an idle one."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: num_gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    asked: list[dict] = []

    def refuse(config: dict) -> None:
        asked.append(config["client_resources"])
        raise ValueError("no cluster in this test")

    monkeypatch.setattr("flwr.server.superlink.fleet.vce.backend.raybackend.RayBackend", refuse)
    chosen_run = Run(engine="simulation", **chosen)
    resolved = chosen_run.threads or 16 // num_workers(chosen_run)
    with pytest.raises(UserError, match=f"run.gpus_per_client = {each:g} can be started"):
        _start(ClientApp(), chosen_run.model_copy(update={"threads": resolved}))
    assert asked == [{"num_cpus": threads, "num_gpus": each}]


@pytest.mark.parametrize("can_access", [True, False])
def test_a_worker_of_a_cluster_reads_relative_paths_as_the_program_that_started_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_access: bool
):
    """Ray started it in a folder of its own; paths that are not relative need no common folder."""
    program, worker = tmp_path / "program", tmp_path / "worker"
    program.mkdir()
    worker.mkdir()
    backend = Mock()
    monkeypatch.setattr("flwr.server.superlink.fleet.vce.backend.raybackend.RayBackend", backend)
    monkeypatch.chdir(program)
    app = ClientApp()
    _start(app, Run(engine="simulation", threads=1, ray="auto"))
    (open_app,) = backend.return_value.build.call_args.args
    monkeypatch.chdir(worker)
    if not can_access:
        program.rmdir()
    assert open_app() is app
    assert Path.cwd() == (program if can_access else worker)


def test_a_clients_error_is_raised_as_by_the_local_engine(
    tmp_path: Path, tiny_settings: Callable[..., Settings]
):
    settings = SHORT | ON_RAY | {"run.dir": tmp_path / "a", "client.learning_rate": 1e30, "method": "fedit"}
    process = run_on_ray(tiny_settings(**settings | {"eval.rewritings": False}))
    said = process.communicate(timeout=500)[1]
    assert process.returncode == 1, said
    assert "Diverged" in said
    assert "lower client.learning_rate" in said
