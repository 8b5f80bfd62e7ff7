"""`make measure`: every measurement on the built-in data with the default model, and on data that is given.

Usage: measure.py FOLDER [DATA]

The grids and their pages are written to FOLDER. DATA is a folder in the layout of docs/data.md. The judge of
win rates is llama.cpp's server with the default model (Makefile): small, and shown as what it is by the
agreement of its two orders. Unfinished grids are resumed. Measurements of finished runs
run two at a time, on half of the cores each. A failing command does not stop the others; it is listed at
the end.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("llama_server.py")
METHODS = ("fedit", "fedsd", "fedsdr")
LARGE_GRID = Path("runs/refute-demo")
"""The grid of recipes/refute-demo.toml: where it was run, its cells of five seeds are measured."""
failed: list[str] = []
"""Commands that failed, and errors of ours."""


def main() -> None:
    """Run all commands, and report their durations."""
    folder = Path(sys.argv[1])
    data = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    methods = LARGE_GRID
    if not (methods / "grid.json").exists():
        methods = folder / "methods"
        fedsdr("compare", "recipes/measure-demo.toml", "--to", methods, "--jobs", 2)
    fedsdr("compare", "recipes/measure-disputed.toml", "--to", folder / "disputed", "--jobs", 2)
    cell, other = (methods / method / "seed-0" for method in ("fedsdr", "fedsd"))
    with ThreadPoolExecutor() as pool:
        ways = [pool.submit(measure_texts, cell), pool.submit(measure_models, methods, cell, other, data)]
        failed.extend(f"{type(error).__name__}: {error}" for way in ways if (error := way.exception()))
    for place in (cell, methods, folder / "disputed"):  # the cell's, since two wrote its page
        fedsdr("report", place)
    if failed:
        sys.exit("\n".join(["failed:", *failed]))


def measure_texts(cell: Path) -> None:
    """Effects of rewriting on the clients' texts, and on training."""
    aside("measure", cell, "--only", "alignment,gradients,transfer,map,paradox")


def measure_models(methods: Path, cell: Path, other: Path, data: Path | None) -> None:
    """Quality of the trained models, and agreement of the clients' updates."""
    for method in METHODS:
        aside("measure", methods / method / "seed-0", "--only", "consistency,survival")
    questions = ("--data", data, "--limit", 4) if data else ()
    aside("measure", cell, "--only", "benchmarks", *questions)
    with serving() as url:
        only = ("measure", cell, "--only", "winrate", "--judge", url, "--judge-model", "smollm2")
        aside(*only, "--against", other)
    pairs = data / "domains" / "general" / "alpaca_distilled_train.jsonl" if data else Path()
    if pairs.is_file():
        aside("analyze", pairs, "--clusters", 5)


def fedsdr(*words: object) -> None:
    """Run a command, shown with the seconds that it took."""
    begin("$", words)


def aside(*words: object) -> None:
    """Run a command on half of the cores; show its output when it ends."""
    half = str(max(1, (os.cpu_count() or 1) // 2))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    begin("begun:", words, env=os.environ | {"OMP_NUM_THREADS": half}, **pipes)


def begin(mark: str, words: Sequence[object], **how: Any) -> None:
    """Run a command of fedsdr; remember it if it fails."""
    start = time.monotonic()
    command = f"fedsdr {' '.join(map(str, words))}"
    print(f"\n{mark} {command}", flush=True)
    done = subprocess.run([sys.executable, "-m", "fedsdr.cli", *map(str, words)], check=False, **how)
    if done.returncode:
        failed.append(command)
    said = "" if done.stdout is None else f"\n$ {command}\n{done.stdout}"
    print(f"{said}# {time.monotonic() - start:.0f} s", flush=True)


@contextmanager
def serving(*options: object) -> Iterator[str]:
    """Base address of llama.cpp's server with the default model; for its options see llama_server.py."""
    command = [os.environ["FEDSDR_SERVER_PYTHON"], str(SERVER), os.environ["FEDSDR_SERVER_GGUF"]]
    command += map(str, options)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout is not None
        yield f"{process.stdout.readline().strip()}/v1"  # it ends when its input does


if __name__ == "__main__":
    main()
