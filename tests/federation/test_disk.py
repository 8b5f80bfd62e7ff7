"""What a run leaves on disk: the rounds that are kept, and room for them before the first."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file

from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.federation.disk import disk
from fedsdr.federation.export import export_round
from fedsdr.federation.model_cache import model_of
from fedsdr.federation.run import resume, run
from fedsdr.federation.server_app import Rounds
from fedsdr.run_folder import RunFolder, list_rounds, read_result

SHORT = {
    "method": "fedit",
    "data.domains": ["finance", "math"],
    "server.num_rounds": 5,
    "client.local_steps": 1,
    "eval.rewritings": False,
    "eval.max_new_tokens": 2,
}


@pytest.mark.parametrize(("keep", "left"), [("all", [0, 1, 2, 3, 4, 5]), ("last", [5]), (2, [0, 2, 4, 5])])
def test_rounds_that_are_kept(tiny_settings: Callable[..., Settings], tmp_path: Path, keep, left: list[int]):
    run(tiny_settings(**SHORT | {"server.keep_rounds": keep, "run.dir": tmp_path / "run"}))
    folder = RunFolder(tmp_path / "run")
    assert list_rounds(folder.server) == left
    assert read_result(folder.path).adapter == folder.round(5)
    if 3 not in left:
        there = ", ".join(map(str, left))
        with pytest.raises(UserError, match=rf"round 3 of .* not kept .*kept rounds: {there}"):
            export_round(folder.path, tmp_path / "out", 3, "", merged=False)


def test_a_stopped_run_goes_on_from_the_only_round_that_is_left(
    tiny_settings: Callable[..., Settings], tmp_path: Path
):
    last = SHORT | {"server.keep_rounds": "last", "server.optimizer": "fedadam", "method": "fedsdr"}
    run(tiny_settings(**last | {"run.dir": tmp_path / "whole"}))
    with pytest.MonkeyPatch.context() as patch:
        train = Rounds.train
        patch.setattr(Rounds, "train", lambda rounds, number: 1 / 0 if number == 4 else train(rounds, number))
        with pytest.raises(ZeroDivisionError):
            run(tiny_settings(**last | {"run.dir": tmp_path / "stopped"}))
    assert list_rounds(RunFolder(tmp_path / "stopped").server) == [3]
    resume(tmp_path / "stopped")
    ends = [
        RunFolder(tmp_path / name).round(5) / "adapter_model.safetensors" for name in ("whole", "stopped")
    ]
    assert ends[0].read_bytes() == ends[1].read_bytes()


@pytest.mark.parametrize("keep", ["all", "last", 2])
@pytest.mark.parametrize("optimizer", ["fedavg", "fedavgm", "fedexp", "fedadam"])
def test_the_estimate_is_what_a_run_leaves(
    tiny_settings: Callable[..., Settings], tmp_path: Path, keep, optimizer: str
):
    changes = {"method": "fedsdr", "server.keep_rounds": keep, "server.optimizer": optimizer}
    settings = tiny_settings(**SHORT | changes | {"server.keep_updates": True, "run.dir": tmp_path / "run"})
    run(settings)
    shapes = {key: tuple(value.shape) for key, value in model_of(settings).state("shared").items()}
    parts = {part.name: part.num_bytes for part in disk(settings, shapes, 2)}
    server, clients = tmp_path / "run" / "server", tmp_path / "run" / "clients"
    left = {
        "updates": num_bytes(server / "updates"),
        "rounds": num_bytes(server) - num_bytes(server / "updates"),
        "clients": num_bytes(clients),
    }
    one = 4 * sum(map(math.prod, shapes.values()))
    one_round = one * {"fedavg": 1, "fedavgm": 3, "fedexp": 1, "fedadam": 5}[optimizer]  # moments are float64
    first = 0 in list_rounds(server)  # has no moments yet
    assert left["rounds"] == len(list_rounds(server)) * one_round - first * (one_round - one)
    assert (
        left["rounds"] <= parts["rounds"] <= left["rounds"] + 2 * one_round
    )  # one while it is being written
    assert parts["updates"] == left["updates"]
    assert parts["spool"] == 2 * one  # both clients' updates, while a round is collected
    assert parts["clients"] == left["clients"] + 2 * one  # a third state while it is being written


def num_bytes(folder: Path) -> int:
    """Of the numbers in all tensors of a folder, without their names and shapes."""
    paths = folder.rglob("*.safetensors")
    return sum(value.nbytes for path in paths for value in load_file(path).values())


def test_too_little_room_stops_a_run_before_its_first_round(
    tiny_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"the run will write .* GB are free; set server.keep_rounds"):
        run(tiny_settings(**SHORT | {"run.dir": tmp_path / "run"}))
    assert not (tmp_path / "run").exists()
