"""One SuperLink and three clients as separate processes, with TLS and node authentication."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.deployment.conftest import CLIENTS, Deployment

import fedsdr
from fedsdr.config import Settings
from fedsdr.federation.export import export_round
from fedsdr.storage import read_lines

WINDOW = 24
"""Characters: a leak of twice as many is found wherever it begins."""
Small = Callable[..., Settings]
Deploy = Callable[..., Deployment]
ROUNDS = ("server/round-*/*.safetensors", "evaluation/*.json")
OWN = ("distilled*.jsonl", "round-*/*.safetensors", "evaluation/*.jsonl")


def files(folder: Path, patterns: tuple[str, ...]) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
    }


def require_equal(one: Deployment, run: Path, local: Path) -> None:
    """The server has the bytes of the local engine, and so has each client in its own folder."""
    assert len(files(run, ROUNDS)) >= 5
    assert files(run, ROUNDS) == files(local, ROUNDS)
    for client in CLIENTS:
        (own,) = (one.folder / client / "state").glob(f"{run.name}-*/{client}")
        assert len(files(own, OWN)) >= 5
        assert files(own, OWN) == files(local / "clients" / client, OWN)


def wait_until(is_true: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.05)


def rounds_of_math(run: Path, event: str) -> list[int]:
    """Rounds in whose log client math has such an event, once for each."""
    events = read_lines(run / "metrics.jsonl")
    return [one["round"] for one in events if one["event"] == event and one["client"] == "math"]


def require_no_text(seen: bytes, *folders: Path) -> None:
    """No 24 characters of any text in any file of these folders went over the wire."""
    num = 0
    for path in (path for folder in folders for path in folder.rglob("*.jsonl")):
        for record in read_lines(path):
            for key in ("instruction", "input", "output", "distilled", "first", "answer"):
                text = str(record.get(key) or "")
                for at in range(0, len(text) - WINDOW, WINDOW):
                    num += 1
                    assert text[at : at + WINDOW].encode() not in seen, (path, key)
    assert num > 50


def test_a_deployment_leaves_the_bytes_of_the_local_engine_and_no_plain_text_on_the_wire(
    deployment: Deploy, small: Small, data_root: Path, tmp_path: Path
):
    """Invariant 7 among engines, and invariant 5 on the wire with TLS."""
    local = fedsdr.run(small(**{"data.root": str(data_root), "run.dir": str(tmp_path / "local")})).folder
    one = deployment(recording=CLIENTS)
    one.start_all()
    one.run(small(**{"run.dir": "runs/first"}))
    run = one.server / "runs" / "first"
    require_equal(one, run, local)
    (state,) = (one.folder / "math/state").glob("first-*")
    export_round(state, tmp_path / "own", None, "", merged=False)
    export_round(local, tmp_path / "simulated", None, "math", merged=False)
    assert files(tmp_path / "own", ("adapter*",)) == files(tmp_path / "simulated", ("adapter*",)) != {}
    for client in CLIENTS:
        paths = [path for path in (one.folder / client / "state").rglob("*") if path.is_file()]
        assert paths and not [path for path in paths if path.stat().st_mode & 0o077]
    page = (run / "report.html").read_text()
    # Flower gives its programs a secret as an argument.
    assert "--token" not in page and "--token" not in (run / "environment.json").read_text()
    assert "at the clients; 18 training and 6 test examples" in page
    seen = b"".join(one.recorder.seen)
    assert len(seen) > 100_000
    require_no_text(seen, data_root, *(one.folder / client / "state" for client in CLIENTS))
    for plain in (b"num_examples", b"settings", b"/v1/fleet", b"numpy"):
        assert plain not in seen.lower()


long = pytest.mark.skipif(not os.environ.get("FEDSDR_FULL"), reason="long; `make test-deployment` runs it")


@long
@pytest.mark.parametrize("what", ["key", "authority"])
def test_a_node_without_a_registered_key_or_with_another_authority_is_not_let_in(
    deployment: Deploy, small: Small, what: str
):
    one, other = deployment(), deployment()
    one.start_server()
    one.register()
    file = {"key": "node.key", "authority": "ca.crt"}[what]
    (one.folder / "math" / file).write_bytes((other.folder / "math" / file).read_bytes())
    for name in CLIENTS:
        one.start_node(name)
    program = one.begin(small(**{"run.dir": "runs/first", "federation.wait": 15.0}))
    told, _ = program.communicate(timeout=120)
    assert "2 of 3 clients were admitted in 15 s" in told


@long
def test_a_registered_client_cannot_take_anothers_name(deployment: Deploy, small: Small):
    one = deployment()
    one.start_server()
    one.register()
    config = one.folder / "math" / "node.toml"
    config.write_text(config.read_text().replace('client = "math"', 'client = "general"'))
    shutil.move(one.folder / "math/data/math", one.folder / "math/data/general")
    for name in ("finance", "math"):
        one.start_node(name)
    program = one.begin(small(**{"run.dir": "runs/first", "federation.wait": 15.0}))
    told, _ = program.communicate(timeout=120)
    assert "1 of 3 clients were admitted in 15 s" in told
    assert "client math is not admitted: the client failed: UserError" in told
    assert "'general' in this node's configuration, but the server registered its key as 'math'" in one.log(
        "math"
    )
    assert not list((one.folder / "math").glob("state/*/general"))  # nothing was rewritten


@long
@pytest.mark.parametrize("what", ["SuperLink and a client's node", "server's app"])
def test_a_killed_server_goes_on_after_the_last_round_with_equal_bytes(
    deployment: Deploy, small: Small, data_root: Path, tmp_path: Path, record: Callable[..., None], what: str
):
    """kill -9 after a finished round, then a restart. The node resumes from its own folder."""
    more = {"server.num_rounds": 4, "client.local_steps": 16, "server.quorum": 1.0, "federation.wait": 240.0}
    local = fedsdr.run(
        small(**{"data.root": str(data_root), "run.dir": str(tmp_path / "local")}, **more)
    ).folder
    one = deployment()
    one.start_all()
    settings = small(**{"run.dir": "runs/first"}, **more)
    run = one.server / "runs" / "first"
    program = one.begin(settings)
    wait_until((run / "server/round-0001").exists)
    if what == "server's app":
        (app,) = (
            child
            for child in psutil.Process(one.programs["server"].pid).children(recursive=True)
            if "fedsdr.deployment.server_worker" in child.cmdline()
        )
        app.kill()
        told, _ = program.communicate(timeout=120)
        assert program.returncode == 2 and "did not finish" in told
    else:
        one.kill("server")
        one.kill("math")
        program.kill()
        one.start_server()
        one.start_node("math")
    assert not (run / "server/round-0004").exists()
    one.run(settings)
    require_equal(one, run, local)
    record(fault=f"kill -9 of the {what}", num=1, lost="nothing: equal bytes")


@long
@pytest.mark.parametrize("what", ["a client's node", "the SuperLink and its programs"])
def test_a_kill_in_the_middle_of_sending_an_update_costs_nothing(
    deployment: Deploy, small: Small, data_root: Path, tmp_path: Path, record: Callable[..., None], what: str
):
    """kill -9 when a quarter of an update of round 2 has gone over the wire. Then all is started again."""
    more = {"server.num_rounds": 3, "server.quorum": 1.0, "federation.wait": 240.0}
    local = fedsdr.run(
        small(**{"data.root": str(data_root), "run.dir": str(tmp_path / "local")}, **more)
    ).folder
    one = deployment(recording=["math"])
    one.start_all()
    settings = small(**{"run.dir": "runs/first", "federation.timeout": 40.0}, **more)
    run = one.server / "runs" / "first"
    program = one.begin(settings)
    wait_until((run / "server/round-0001").exists)
    killed = "math" if what == "a client's node" else "server"

    def kill() -> None:
        one.kill(killed)
        one.kill_orphans()

    one.recorder.cut = kill
    wait_until(lambda: killed not in one.programs)
    if killed == "math":
        told, _ = program.communicate(timeout=200)
        assert program.returncode == 2 and "2 of 3 sampled clients gave a usable reply" in told
        one.start_node("math")
    else:
        program.kill()
        one.start_server()
    assert not (run / "server/round-0002").exists()
    one.run(settings)
    require_equal(one, run, local)
    record(fault=f"kill -9 of {what} while an update is sent", num=1, lost="nothing: equal bytes")


@long
def test_a_client_slower_than_the_timeout_is_left_out_and_its_late_reply_is_not_used(
    deployment: Deploy, small: Small, record: Callable[..., None]
):
    """SIGSTOP and SIGCONT of its worker: it answers when the round is over."""
    one = deployment()
    one.start_all()
    settings = small(**{"run.dir": "runs/first", "server.num_rounds": 6, "federation.timeout": 12.0})
    run = one.server / "runs" / "first"
    program = one.begin(settings)
    wait_until((run / "server/round-0001").exists)
    slow = one.programs["math"]
    slow.send_signal(signal.SIGSTOP)
    wait_until(lambda: rounds_of_math(run, "dropped"))
    slow.send_signal(signal.SIGCONT)
    told, _ = program.communicate(timeout=280)
    assert program.returncode == 0, told
    trained, dropped = (rounds_of_math(run, event) for event in ("train", "dropped"))
    assert max(trained) > max(dropped)
    assert sorted(trained + dropped) == [1, 2, 3, 4, 5, 6]  # no round has both, none twice
    record(
        fault="a client slower than the timeout",
        num=1,
        lost=f"its replies of {len(dropped)} rounds of 6",
    )


@long
def test_a_run_with_other_settings_in_a_finished_runs_folder_is_not_told_as_done(
    deployment: Deploy, small: Small
):
    one = deployment()
    one.start_all()
    one.run(small(**{"run.dir": "runs/first", "server.num_rounds": 1}))
    program = one.begin(small(**{"run.dir": "runs/first", "server.num_rounds": 1, "run.seed": 5}))
    told, _ = program.communicate(timeout=120)
    assert program.returncode == 2
    assert "cannot continue: run.seed was 0 and is 5 now" in told and "did not finish" in told


@long
def test_a_killed_client_misses_rounds_and_takes_part_again_when_it_is_back(
    deployment: Deploy, small: Small, record: Callable[..., None]
):
    """Its reply is late, so the round continues above the quorum."""
    one = deployment()
    one.start_all()
    settings = small(**{"run.dir": "runs/first", "server.num_rounds": 12, "federation.timeout": 15.0})
    run = one.server / "runs" / "first"
    program = one.begin(settings)
    wait_until((run / "server/round-0002").exists)
    one.kill("math")
    wait_until(lambda: rounds_of_math(run, "dropped"))
    one.start_node("math")
    told, _ = program.communicate(timeout=280)
    assert program.returncode == 0, told
    trained, dropped = (rounds_of_math(run, event) for event in ("train", "dropped"))
    assert dropped and max(trained) > max(dropped)
    assert set(trained) | set(dropped) == set(range(1, 13))
    record(fault="kill -9 of a client's node", num=1, lost=f"its replies of {len(dropped)} rounds of 12")


@long
def test_a_client_whose_data_changed_between_rounds_is_refused_and_told_what_changed(
    deployment: Deploy, small: Small, record: Callable[..., None]
):
    one = deployment()
    one.start_all()
    run = one.server / "runs" / "first"
    program = one.begin(small(**{"run.dir": "runs/first", "server.num_rounds": 4}))
    wait_until((run / "server/round-0001").exists)
    path = one.folder / "math/data/math/train.jsonl"
    path.write_text(path.read_text().replace("a", "e", 1))
    told, _ = program.communicate(timeout=200)
    assert program.returncode == 0, told
    reasons = {e["reason"] for e in read_lines(run / "metrics.jsonl") if e["event"] == "dropped"}
    assert any(reason.startswith("the client failed: UserError, see node-error.txt") for reason in reasons), (
        reasons
    )
    assert "training examples" in one.log("math") and "changed since" in one.log("math")
    record(
        fault="data file changed between rounds", num=1, lost="that client's replies; it is told what changed"
    )
