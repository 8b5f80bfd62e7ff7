"""`make measure`: every measurement on the built-in data with the default model, and on data that is given.

Usage: measure.py FOLDER [DATA]

FOLDER gets the grids and their pages. DATA is a folder as the benchmarks want it (docs/data.md). The judge of
win rates is llama.cpp's server with the default model (Makefile): small, and shown as what it is by the
agreement of its two orders. Grids that were begun before are taken up again. A command that fails keeps no
other from being run; it is named at the end.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER = Path(__file__).with_name("llama_server.py")
METHODS = ("fedit", "fedsd", "fedsdr")
LARGE_GRID = Path("runs/refute-demo")
"""The grid of recipes/refute-demo.toml: where it was run, its cells of five seeds are measured."""
failed: list[str] = []
"""Commands that failed."""


def main() -> None:
    """Run all commands, and say how long each took."""
    folder = Path(sys.argv[1])
    data = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    methods = LARGE_GRID
    if not (methods / "grid.json").exists():
        methods = folder / "methods"
        fedsdr("compare", "recipes/measure-demo.toml", "--to", methods, "--jobs", 2)
    fedsdr("compare", "recipes/measure-disputed.toml", "--to", folder / "disputed", "--jobs", 2)
    for method in METHODS:
        fedsdr("measure", methods / method / "seed-0", "--only", "consistency,survival")
    cell, other = (methods / method / "seed-0" for method in ("fedsdr", "fedsd"))
    fedsdr("measure", cell, "--only", "alignment,gradients,transfer,map,paradox")
    questions = ("--data", data, "--limit", 4) if data else ()
    fedsdr("measure", cell, "--only", "benchmarks", *questions)
    with judge() as url:
        only = ("measure", cell, "--only", "winrate", "--judge", url, "--judge-model", "smollm2")
        fedsdr(*only, "--against", other)
    if data:
        pairs = data / "domains" / "general" / "alpaca_distilled_train.jsonl"
        if pairs.exists():
            fedsdr("analyze", pairs, "--clusters", 5)
    for grid in (methods, folder / "disputed"):
        fedsdr("report", grid)
    if failed:
        sys.exit("\n".join(["failed:", *failed]))


def fedsdr(*words: object) -> None:
    """Run a command, shown with the seconds that it took."""
    start = time.monotonic()
    command = f"fedsdr {' '.join(map(str, words))}"
    print(f"\n$ {command}", flush=True)
    if subprocess.run([sys.executable, "-m", "fedsdr.cli", *map(str, words)], check=False).returncode:
        failed.append(command)
    print(f"# {time.monotonic() - start:.0f} s", flush=True)


@contextmanager
def judge() -> Iterator[str]:
    """Base address of llama.cpp's server with the default model."""
    command = [os.environ["FEDSDR_SERVER_PYTHON"], str(SERVER), os.environ["FEDSDR_SERVER_GGUF"]]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout is not None
        yield f"{process.stdout.readline().strip()}/v1"  # it ends when its input does


if __name__ == "__main__":
    main()
