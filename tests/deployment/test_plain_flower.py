"""Flower's own ways to run the same apps: a process for each message without TLS, and the simulation engine."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.deployment.conftest import BIN, CLIENTS, Deployment
from tests.deployment.test_loopback import ROUNDS, files, long, require_equal, require_no_text

import fedsdr
from fedsdr.config import Settings
from fedsdr.deployment.superlink import environment
from fedsdr.recipe import dump_settings

Small = Callable[..., Settings]


@long
def test_without_tls_and_with_a_process_for_each_message_the_bytes_are_equal_and_hold_nothing_private(
    deployment: Callable[..., Deployment], small: Small, data_root: Path, tmp_path: Path, tiny_folder: Path
):
    """Invariant 5 on the wire, where all can be read: no text, no rewriting, no private tensor."""
    local = fedsdr.run(small(**{"data.root": str(data_root), "run.dir": str(tmp_path / "local")})).folder
    one = deployment(recording=CLIENTS)
    shutil.rmtree(one.server / "keys")
    start = ["--host", "127.0.0.1", "--isolation", "subprocess"]
    superlink = ["--insecure", "--port", str(one.port), "--database", str(one.server / "plain.db")]
    home = {"FLWR_HOME": str(one.server / "flower"), "PATH": f"{BIN}:{os.environ['PATH']}"}
    one.start("server", [BIN / "flower-superlink", *start, *superlink], home)
    one.wait_for_server()
    (one.server / "flower").mkdir(exist_ok=True)
    (one.server / "flower" / "config.toml").write_text(
        f'[superlink]\ndefault = "fedsdr"\n[superlink.fedsdr]\naddress = "127.0.0.1:{one.port}"\ninsecure = true\n'
    )
    for number, client in enumerate(CLIENTS, start=1):
        place = one.folder / client
        node = f'client="{client}" data="{place / "data"}" folder="{place / "state"}" model="{tiny_folder}"'
        words = ["--insecure", "--superlink", f"127.0.0.1:{one.recorder.port}", "--node-config", node]
        own = {"FLWR_HOME": str(place / "flower"), "PATH": f"{BIN}:{os.environ['PATH']}"}
        port = ["--port", str(one.port + 100 + number)]
        one.start(client, [BIN / "flower-supernode", *start, *port, *words], own)
    one.run(small(**{"run.dir": "runs/first"}))
    require_equal(one, one.server / "runs" / "first", local)
    seen = b"".join(one.recorder.seen)
    assert b"num_examples" in seen  # it can be read, so what follows means something
    require_no_text(seen, data_root, *(one.folder / client / "state" for client in CLIENTS))

    def windows(path: Path) -> list[bytes]:
        """64 bytes here and there in the last tensors of an adapter."""
        data = path.read_bytes()[-20_000:]
        return [data[at : at + 64] for at in range(0, len(data) - 64, 512)]

    # What is sent is found, so that what is not found was not sent.
    sent = windows(one.server / "runs/first/server/round-0001/adapter_model.safetensors")
    assert sum(window in seen for window in sent) > len(sent) / 2
    for client in CLIENTS:
        (own_folder,) = (one.folder / client / "state").glob(f"first-*/{client}")
        for path in own_folder.glob("round-*/adapter_model.safetensors"):
            assert all(window not in seen for window in windows(path))


@long
def test_flowers_simulation_leaves_the_bytes_of_the_local_engine(
    small: Small, data_root: Path, tmp_path: Path
):
    pytest.importorskip("ray")
    more = {"data.root": str(data_root)}
    local = fedsdr.run(small(**more, **{"run.dir": str(tmp_path / "local")})).folder
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(dump_settings(small(**more, **{"run.dir": str(tmp_path / "simulated")})))
    own = environment(
        FLWR_HOME=str(tmp_path / "flower"),
        RAY_USAGE_STATS_ENABLED="0",
        PATH=f"{BIN}:{os.environ['PATH']}",
    )
    options = ["--federation-config", "num-supernodes=3 client-resources-num-cpus=1"]
    command = [BIN / "flwr", "run", ".", "--stream", *options, "--run-config", f'recipe="{recipe}"']
    root = Path(fedsdr.__file__).parents[2]
    try:
        done = subprocess.run(command, cwd=root, env=own, capture_output=True, text=True, timeout=300)
    finally:
        subprocess.run(["pkill", "-f", str(tmp_path / "flower")], check=False)
    assert (tmp_path / "simulated/server/round-0002").exists(), done.stdout + done.stderr
    assert files(tmp_path / "simulated", ROUNDS) == files(local, ROUNDS)
    own = ("clients/*/distilled*.jsonl", "clients/*/round-*/*.safetensors", "clients/*/evaluation/*.jsonl")
    assert files(tmp_path / "simulated", own) == files(local, own)
