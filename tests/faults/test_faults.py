"""What a machine may do to a run: full disks, memory that ends, clocks that jump, folders that are shared."""

import errno
import gc
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import fedsdr
from fedsdr.client import round as client_round
from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.federation.local_engine import LocalGrid
from fedsdr.progress import here
from fedsdr.storage import read_lines

Runs = Callable[..., Settings]
RUN = {"method": "fedsdr", "eval.every": 1}


def test_a_disk_that_is_full_or_read_only_ends_the_run_with_the_systems_words_and_the_next_goes_on(
    run_settings: Runs,
    results: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
    often: Callable[[int, int], int],
    record: Callable[..., None],
):
    """At writes all over a run, of the server and of clients: rewritings, rounds, scores, the log."""
    whole = run_settings(**RUN)
    flush, writes = os.fsync, list[str]()
    refused: dict[int, int] = {}

    def fsync(file: int) -> None:
        writes.append(os.readlink(f"/proc/self/fd/{file}"))
        if error := refused.get(len(writes)):
            raise OSError(error, os.strerror(error))
        flush(file)

    monkeypatch.setattr(os, "fsync", fsync)
    expected = results(fedsdr.run(whole).folder)
    num, places = len(writes), set[str]()
    rounds = [at for at, path in enumerate(writes, 1) if "/server/" in path]
    chosen = sorted({*range(2, num, num // often(6, 30)), rounds[len(rounds) // 2]})
    for number, at in enumerate(chosen):
        settings = run_settings(**RUN)
        folder = Path(settings.run.dir)
        error = (errno.ENOSPC, errno.EROFS)[number % 2]
        writes.clear()
        refused = {at: error}
        with pytest.raises(OSError, match=os.strerror(error)):
            fedsdr.run(settings)
        places |= set(Path(writes[at - 1]).relative_to(folder.resolve()).parts[:1])
        refused = {}
        fedsdr.resume(folder) if (folder / "config.toml").exists() else fedsdr.run(settings)
        for told in folder.glob("clients/node-*-error.txt"):
            told.unlink()
        assert results(folder) == expected
        fault = "disk full" if error == errno.ENOSPC else "disk read-only"
        record(fault=f"{fault} (local engine)", num=1, lost="nothing: equal bytes after going on")
    assert {"clients", "server"} <= places


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_paid_for(run_settings: Runs):
    with pytest.raises(OSError, match="/proc/fedsdr"):
        fedsdr.run(run_settings(**{"run.dir": "/proc/fedsdr"}))


def test_memory_that_ends_in_one_client_costs_its_reply_and_no_more(
    run_settings: Runs, monkeypatch: pytest.MonkeyPatch, record: Callable[..., None]
):
    update = client_round.local_update

    def greedy(*args: Any, **kwargs: Any) -> Any:
        if "math" in here():
            raise MemoryError
        return update(*args, **kwargs)

    monkeypatch.setattr(client_round, "local_update", greedy)
    folder = fedsdr.run(run_settings(**RUN)).folder
    events = read_lines(folder / "metrics.jsonl")
    dropped = [event for event in events if event["event"] == "dropped"]
    assert {event["client"] for event in dropped} == {"math"}
    assert all(event["reason"].startswith("the client failed: MemoryError") for event in dropped)
    assert (folder / "server/round-0002").exists()
    record(
        fault="out of memory in one client (local engine)",
        num=len(dropped),
        lost="that client's reply of the round",
    )


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_changes_nothing(
    run_settings: Runs,
    results: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
    jump: float,
    record: Callable[..., None],
):
    expected = results(fedsdr.run(run_settings(**RUN)).folder)
    now, begun = time.time, time.monotonic()
    monkeypatch.setattr(time, "time", lambda: now() + (jump if time.monotonic() - begun > 0.3 else 0))
    folder = fedsdr.run(run_settings(**RUN)).folder
    assert results(folder) == expected
    assert all(event.get("seconds", 0) < 100 for event in read_lines(folder / "metrics.jsonl"))
    record(fault="clock jumps by 30 years (local engine)", num=1, lost="nothing: equal bytes")


def test_load_of_many_clients_keeps_memory_flat(
    tmp_path: Path, often: Callable[[int, int], int], record: Callable[..., None]
):
    """Messages and replies of 1 MB; what a client was sent and what it sent is let go."""
    app = ClientApp()

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        payload = bytes(message.content["config"]["payload"])
        content = RecordDict({"c": ConfigRecord({"payload": payload}), "m": MetricRecord({"n": 1})})
        return Message(content, reply_to=message)

    grid = LocalGrid(app, 200, tmp_path)
    content = RecordDict({"config": ConfigRecord({"payload": os.urandom(1_000_000)})})
    memory = []
    for number in range(5):
        replies = grid.send_and_receive(
            [Message(content, node, "train", group_id=str(number)) for node in grid.get_node_ids()]
        )
        assert sum(not reply.has_error() for reply in replies) == 200
        gc.collect()
        memory.append(psutil.Process().memory_info().rss)
    assert memory[-1] < 1.1 * memory[0]
    record(
        fault="load: 200 clients, 1,000 messages of 1 MB (local engine)",
        num=1000,
        lost=f"nothing; memory of the last round {memory[-1] / memory[0]:.2f} of the first's",
    )


def test_a_run_of_many_clients_keeps_memory_flat(
    run_settings: Runs,
    monkeypatch: pytest.MonkeyPatch,
    often: Callable[[int, int], int],
    record: Callable[..., None],
):
    """Everything that a client and the server do, on the tiny model."""
    num, memory = often(20, 200), list[int]()
    send = LocalGrid.send_and_receive

    def watched(grid: LocalGrid, messages: Any, **more: Any) -> Any:
        yield from send(grid, messages, **more)
        gc.collect()
        memory.append(psutil.Process().memory_info().rss)

    monkeypatch.setattr(LocalGrid, "send_and_receive", watched)
    settings = run_settings(
        **{
            "method": "fedsdr",
            "data.domains": ["code", "finance", "general", "math", "medicine"],
            "data.num_train": 0,
            "partition.kind": "iid",
            "partition.num_clients": num,
            "server.num_rounds": 5,
            "client.local_steps": 1,
            "eval.every": 0,
        }
    )
    folder = fedsdr.run(settings).folder
    events = [event["event"] for event in read_lines(folder / "metrics.jsonl")]
    assert events.count("train") == 5 * num and "dropped" not in events
    assert memory[-1] < 1.1 * memory[0]
    record(
        fault=f"load: a run of {num} clients and {5 * num:,} local updates (local engine)",
        num=5 * num,
        lost=f"nothing; memory after the last round {memory[-1] / memory[0]:.2f} of that before the first",
    )


def test_two_runs_in_one_folder_are_refused(run_settings: Runs, record: Callable[..., None]):
    settings = run_settings(**RUN)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            import fcntl

            with (Path(settings.run.dir) / ".lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write("123")
                file.flush()
                os.write(write, b".")
                time.sleep(60)
        finally:
            os._exit(0)
    os.read(read, 1)
    try:
        with pytest.raises(UserError, match=r"another process \(\d+\) is working in"):
            fedsdr.run(settings)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    fedsdr.run(settings)  # the lock goes with the process
    record(fault="two runs in one folder", num=1, lost="nothing: the second is refused")
