"""Flower's own simulation, by the command of docs/deployment.md. Skips without Ray (`fedsdr[simulation]`)."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fedsdr.federation.run import run
from fedsdr.recipe import load_settings

ROOT = Path(__file__).parents[2]
ADAPTER = "server/round-0002/adapter_model.safetensors"


def test_the_documented_command_installs_nothing_and_gives_the_bytes_of_fedsdr_run(tmp_path: Path):
    pytest.importorskip("ray")
    documented = (ROOT / "docs" / "deployment.md").read_text()
    command = re.search(r"```\n(export [^\n]+\nflwr run .*?)\n```", documented, re.DOTALL).group(1)
    recipe = ROOT / "recipes" / "smoke.toml"
    overrides = f"federation.num_clients=3 run.dir={tmp_path / 'flower'}"
    command = re.sub(
        r'recipe="[^"]*" overrides="[^"]*"', f'recipe="{recipe}" overrides="{overrides}"', command
    )
    command = command.replace("num-supernodes=5", "num-supernodes=3 client-resources-num-cpus=1")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    home = tmp_path / "home"
    home.mkdir()
    try:
        ended = subprocess.run(
            ["bash", "-c", command],
            cwd=ROOT,
            env=os.environ | {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "PATH": path},
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:  # the SuperLink that Flower leaves running
        for process in psutil.process_iter():
            if _home(process) == str(home):
                process.send_signal(signal.SIGTERM)
    run(load_settings(recipe, [f"run.dir={tmp_path / 'own'}"]))
    flower = tmp_path / "flower" / ADAPTER
    assert flower.exists(), ended.stdout + ended.stderr
    assert flower.read_bytes() == (tmp_path / "own" / ADAPTER).read_bytes()


def _home(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("HOME")
    except psutil.Error:
        return None
