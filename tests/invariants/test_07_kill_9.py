"""Invariant 7 with real processes: each is killed by signal 9, the next one resumes."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fedsdr
from fedsdr.config import Settings
from fedsdr.recipe import dump_settings

RUN = {"method": "fedsdr", "eval.every": 1, "client.local_steps": 4}
START = "import sys, fedsdr; fedsdr.run(fedsdr.load_settings(sys.argv[1]))"
GO_ON = "import sys, fedsdr; from pathlib import Path; fedsdr.resume(Path(sys.argv[1]))"


def kill_when(found: Callable[[], Any], program: str, argument: Path) -> None:
    """Run a program and kill it as soon as something is on the disk."""
    process = subprocess.Popen([sys.executable, "-c", program, str(argument)], stderr=subprocess.DEVNULL)
    while not found():
        assert process.poll() is None, "the program ended before it could be killed"
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_run_killed_three_times_leaves_the_same_bytes(
    run_settings: Callable[..., Settings],
    finished: Callable[..., Path],
    results: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    settings = run_settings(**RUN)
    folder, recipe = Path(settings.run.dir), tmp_path / "recipe.toml"
    recipe.write_text(dump_settings(settings))

    kill_when(lambda: list(folder.glob("clients/general/rewritings/*")), START, recipe)
    assert not (folder / "clients/general/distilled.jsonl").exists()
    kill_when(lambda: (folder / "clients/finance/round-0001").exists(), GO_ON, folder)
    assert not (folder / "server/round-0001").exists()
    kill_when(lambda: (folder / "clients/finance/evaluation/round-0001-global.jsonl").exists(), GO_ON, folder)
    assert not (folder / "server/round-0002").exists()
    assert results(fedsdr.resume(folder).folder) == results(finished(**RUN))
