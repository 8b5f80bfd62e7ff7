"""kill -9 of a run, at random instants and at every write: the next leaves what no kill would have left."""

import json
import mmap
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import fedsdr
from fedsdr import storage
from fedsdr.client import round as client_round
from fedsdr.client import update
from fedsdr.config import Settings
from fedsdr.federation import client_app, client_context
from fedsdr.federation.local_engine import LocalGrid
from fedsdr.federation.model_cache import model_of
from fedsdr.progress import here

RUN = {"method": "fedsdr", "eval.every": 1, "client.local_steps": 4}


def forked(settings: Settings) -> int:
    """Start or resume the run in a copy of this process."""
    folder = Path(settings.run.dir)
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        fedsdr.resume(folder) if (folder / "config.toml").exists() else fedsdr.run(settings)
        status = 0
    finally:
        os._exit(status)


@pytest.fixture
def doing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What a run was in the middle of, as it says itself in memory that all children share."""
    place = mmap.mmap(-1, 64)

    def say(what: str) -> None:
        place[:] = what.encode().ljust(len(place))

    def read() -> str:
        return place[:].decode().strip()

    def during(owner: Any, name: str, what: Callable[..., str]) -> None:
        function = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before = read()
            say(what(before, *args))
            try:
                return function(*args, **kwargs)
            finally:
                say(before)

        monkeypatch.setattr(owner, name, wrapped)

    say("server: rest")
    during(LocalGrid, "_answer", lambda *_: "client: rest")
    during(client_context, "rewrite", lambda *_: "client: rewriting")
    during(update, "response_loss", lambda *_: f"client: training {here().partition(': ')[2]}")
    during(client_round, "_pack", lambda *_: "client: packing its reply")
    during(client_app, "_evaluate", lambda *_: "client: evaluating")
    for name in ("write_file", "write_folder", "append_lines"):
        function = getattr(storage, name)
        for module in [module for key, module in sys.modules.items() if key.startswith("fedsdr.")]:
            if getattr(module, name, None) is function:
                during(module, name, lambda before, *_: f"{before.partition(':')[0]}: saving")

    def interrupted() -> str:
        what = read()
        say("server: rest")  # for the next child
        return what

    return interrupted


def demand_whole(folder: Path) -> None:
    """No file that counts is half-written; what was being written is aside, under a name with a dot."""
    for path in folder.rglob("*"):
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or path.is_dir():
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.suffix == ".safetensors":
            with safe_open(path, "np") as file:
                assert list(file.keys())
        if path.suffix == ".jsonl":
            *whole, torn = path.read_text().split("\n")
            assert not torn or path.name == "metrics.jsonl" or path.parent.name in ("rewritings", "scores")
            for line in whole:
                json.loads(line)


def test_a_run_killed_at_random_instants_leaves_the_bytes_of_one_that_was_not(
    run_settings: Callable[..., Settings],
    results: Callable[[Path], Any],
    doing: Callable[[], str],
    often: Callable[[int, int], int],
    record: Callable[..., None],
):
    settings = run_settings(**RUN)
    model_of(settings)  # the parent is warm: a child is in the middle of things at once
    begun = time.monotonic()
    child = forked(settings)
    assert os.waitpid(child, 0)[1] == 0
    seconds = time.monotonic() - begun
    expected = results(Path(settings.run.dir))

    wanted, rng = often(6, 120), random.Random(0)
    stages: Counter[str] = Counter()
    num_runs = 0
    while sum(stages.values()) < wanted:
        settings = run_settings(**RUN)
        folder = Path(settings.run.dir)
        num_runs += 1
        while True:
            child = forked(settings)
            until = time.monotonic() + rng.uniform(0, 0.7) * seconds
            ended, status = 0, 0
            while not ended and time.monotonic() < until:
                ended, status = os.waitpid(child, os.WNOHANG)
                time.sleep(0.001)
            if ended:
                assert status == 0
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            stages[doing()] += 1
            demand_whole(folder)
        assert results(folder) == expected
    for stage, num in sorted(stages.items()):
        record(
            fault="kill -9 at a random instant (local engine)",
            stage=stage,
            num=num,
            lost="nothing: equal bytes",
        )
    record(fault="runs finished after kill -9", num=num_runs, lost="nothing: equal bytes")


def test_a_run_killed_before_or_after_any_write_leaves_the_bytes_of_one_that_was_not(
    run_settings: Callable[..., Settings],
    results: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
    often: Callable[[int, int], int],
    record: Callable[..., None],
):
    """Whatever is to last passes `os.fsync`: between two such calls a kill finds the disk as it finds it here."""
    flush, num_writes = os.fsync, mmap.mmap(-1, 8)
    last = 0

    def fsync(file: int) -> None:
        done = int.from_bytes(num_writes[:], "little") + 1
        num_writes[:] = done.to_bytes(8, "little")
        if done == last and not is_after:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(file)
        if done == last:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(os, "fsync", fsync)
    settings = run_settings(**RUN)
    model_of(settings)
    assert os.waitpid(forked(settings), 0)[1] == 0
    expected = results(Path(settings.run.dir))
    num = int.from_bytes(num_writes[:], "little")
    assert num > 60

    kills = [(at, is_after) for at in range(1, num + 1) for is_after in (False, True)]
    kills = kills[-1 :: -often(15, 3)]
    assert {is_after for _, is_after in kills} == {False, True}
    for last, is_after in kills:
        settings = run_settings(**RUN)
        folder = Path(settings.run.dir)
        num_writes[:] = bytes(8)
        assert os.waitpid(forked(settings), 0)[1] == signal.SIGKILL
        demand_whole(folder)
        assert os.waitpid(forked(settings), 0)[1] == 0
        assert results(folder) == expected, (last, is_after)
    record(
        fault="kill -9 before or after a write (local engine)",
        num=len(kills),
        lost="nothing: equal bytes",
    )
