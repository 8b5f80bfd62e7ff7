"""Secure aggregation between processes with TLS and keys, and a client that is killed in the middle of a sum."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Error, Message
from tests.deployment.conftest import CLIENTS, Deployment, write_data
from tests.deployment.test_loopback import wait_until

import fedsdr
from fedsdr.config import Settings
from fedsdr.federation.local_engine import LocalGrid
from fedsdr.messages.flower import CLIENT_FAILED
from fedsdr.storage import read_lines

FOUR = (*CLIENTS, "medicine")
SECURE = {
    **{"privacy.secure_aggregation": True, "server.num_rounds": 1},
    **{"federation.num_clients": 4, "federation.timeout": 60.0, "federation.wait": 240.0},
}
WINDOW = 32


def rows(values: np.ndarray) -> set[bytes]:
    """Runs of eight numbers without a zero."""
    return {row.tobytes() for row in values[: len(values) // 8 * 8].reshape(-1, 8) if row.all()}


pytestmark = pytest.mark.skipif(
    not os.environ.get("FEDSDR_FULL"), reason="long; `make test-deployment` runs it"
)


def test_a_client_killed_in_mid_round_costs_its_update_alone_and_no_single_update_reaches_the_server(
    deployment: Callable[..., Deployment],
    small: Callable[..., Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """The bytes of the local engine where the same client was lost; the server's disk has no client's change.

    Everything that the SuperLink keeps is searched, its database and its log among it.
    """
    root = write_data(tmp_path / "four", FOUR)
    one = deployment(data_root=root, clients=FOUR)
    one.start_all()
    program = one.begin(small(**SECURE | {"run.dir": "runs/first"}))
    seen: dict[str, np.ndarray] = {}

    def session(client: str) -> list[Path]:
        return list((one.folder / client).glob("state/*/*/secure/session.json"))

    def has_shared() -> bool:
        for client in FOUR:
            for path in (one.folder / client).glob("state/*/*/secure/*.npy"):
                seen[client] = np.load(path)
        return bool(session("math")) and '"roll"' in session("math")[0].read_text()

    wait_until(has_shared, 300)
    time.sleep(1)  # its shares leave
    one.kill("math")
    one.kill_orphans()
    told, _ = program.communicate(timeout=600)
    assert program.returncode == 0, told + one.log("server")
    run = one.server / "runs" / "first"
    dropped = [event for event in read_lines(run / "metrics.jsonl") if event["event"] == "dropped"]
    assert {event["client"] for event in dropped} == {"math"}
    assert any(event["reason"].startswith("secure aggregation, ") for event in dropped)

    answer = LocalGrid._answer

    def losing(grid: LocalGrid, message: Message) -> Message:
        if message.content["config"].get("step") == "masked" and message.metadata.dst_node_id == 3:
            return Message(Error(CLIENT_FAILED, "lost"), reply_to=message)
        return answer(grid, message)

    monkeypatch.setattr(LocalGrid, "_answer", losing)
    local = fedsdr.run(small(**SECURE | {"data.root": str(root), "run.dir": str(tmp_path / "local")})).folder
    name = "server/round-0001/adapter_model.safetensors"
    assert (run / name).read_bytes() == (local / name).read_bytes()

    assert set(seen) == set(FOUR)
    kept = b"".join(path.read_bytes() for path in one.server.rglob("*") if path.is_file())
    for change in seen.values():
        found = rows(change) | rows(change.astype(np.float32))
        assert len(found) > 100
        assert not [row for row in found if row in kept]
    for client in set(FOUR) - {"math"}:
        paths = list((one.folder / client).glob("state/*/*/secure/*"))
        assert [path.name for path in paths] == ["confirmed.json"]


def test_a_peers_key_that_is_not_the_clients_stops_the_sum_and_each_client_says_why(
    deployment: Callable[..., Deployment], small: Callable[..., Settings], tmp_path: Path
):
    """As if the server's operator had substituted keys, or invented a client."""
    root = write_data(tmp_path / "four", FOUR)
    one = deployment(data_root=root, clients=FOUR)
    for client in ("finance", "general"):
        place = one.folder / client / "peers"
        (place / "math.pub").write_bytes((place / "medicine.pub").read_bytes())
    one.start_all()
    program = one.begin(small(**SECURE | {"run.dir": "runs/first"}))
    told, _ = program.communicate(timeout=600)
    assert program.returncode != 0
    assert "secure aggregation, shares, needs 3" in " ".join(told.split())
    for client in ("finance", "general"):
        assert "client math did not sign the keys that the server lists for it" in one.log(client)


def test_a_node_with_min_clients_takes_part_in_no_run_that_would_show_its_update(
    deployment: Callable[..., Deployment], small: Callable[..., Settings]
):
    one = deployment()
    config = one.folder / "math" / "node.toml"
    config.write_text(config.read_text().replace("# min-clients = 0", "min-clients = 3"))
    one.start_all()
    program = one.begin(small(**{"run.dir": "runs/first", "federation.wait": 15.0}))
    told, _ = program.communicate(timeout=120)
    assert "2 of 3 clients were admitted in 15 s" in told
    assert "min-clients = 3 requires privacy.secure_aggregation = true" in one.log("math")
