"""Rounds by the local engine and by Flower's simulation on Ray: seconds of each, and memory.

    python benchmarks/engines.py benchmarks/results/engines.json [MODEL] [STEPS] [TURNS]

Four clients of equal size and conversations of equal length, fedit, three rounds; the first of a run, which
loads models, does not count. The ways take turns: the local engine with one thread, two workers of one thread
each, and the local engine with all cores. Memory is the largest sum over the processes of a run of what each
has for itself and its share of what is common (PSS). Nothing else should run. docs/scale.md shows the record.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from bench import environment
from fedsdr.run_folder import RunFolder
from fedsdr.storage import read_lines, write_json

CLIENTS, EACH, WORDS = 4, 8, 60
CORES = os.cpu_count() or 1
WAYS: dict[str, dict[str, Any]] = {
    "local, 1 thread": {"run.threads": 1},
    "2 workers of 1 thread": {"run.threads": 1, "run.engine": "simulation", "run.workers": 2},
    f"local, {CORES} threads": {"run.threads": CORES},
}


def write_data(root: Path) -> None:
    """Examples of equal length; the last ones are the tests."""
    (root / "words").mkdir(parents=True)
    for name, num in (("train", CLIENTS * EACH), ("test", CLIENTS)):
        rows = [{"instruction": f"Say {n + 10}.", "output": " time" * WORDS} for n in range(num)]
        (root / "words" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def memory_of(process: psutil.Process) -> int:
    """PSS of a process and of all that it has begun, those of Ray among them."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended this instant
    return total


def measure(model: str, steps: int, way: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        write_data(Path(place) / "data")
        values = {
            "method": "fedit", "run.dir": f"{place}/run", "model.name": model, "data.root": f"{place}/data",
            "partition.kind": "iid", "partition.num_clients": CLIENTS, "client.local_steps": steps,
            "server.num_rounds": 3, "eval.rewritings": False, "eval.max_new_tokens": 1, **way,
        }  # fmt: skip
        child = subprocess.Popen(
            [sys.executable, "-c", f"import fedsdr; fedsdr.run({values!r})"],
            env=os.environ | {"OMP_NUM_THREADS": str(way["run.threads"])},
        )
        peak = 0
        while child.poll() is None:
            peak = max(peak, memory_of(psutil.Process(child.pid)))
            time.sleep(0.5)
        if child.returncode:
            sys.exit(child.returncode)
        rounds = [e["seconds"] for e in read_lines(RunFolder(f"{place}/run").log) if e["event"] == "round"]
        return {"round_seconds": rounds[1:], "peak_memory": peak}


def main() -> None:
    path, *rest = sys.argv[1:]
    model, steps, turns = [*rest, *("smollm2-135m-instruct", "8", "3")[len(rest) :]]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for _ in range(int(turns)):
        for name, way in WAYS.items():
            found[name].append(measure(model, int(steps), way))
            print(name, found[name][-1], flush=True)
    medians = {
        name: {
            "round_seconds": median(seconds for turn in turns for seconds in turn["round_seconds"]),
            "peak_memory": max(turn["peak_memory"] for turn in turns),
        }
        for name, turns in found.items()
    }
    first = medians["local, 1 thread"]["round_seconds"]
    speed = {name: first / numbers["round_seconds"] for name, numbers in medians.items()}
    write_json(
        Path(path),
        {
            "environment": environment(), "model": model, "steps": int(steps), "clients": CLIENTS,
            "times_as_fast": speed, "medians": medians, "turns": found,
        },
    )  # fmt: skip
    print(json.dumps(speed, indent=1))


if __name__ == "__main__":
    main()
