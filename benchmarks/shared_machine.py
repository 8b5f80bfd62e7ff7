"""Measure products of training and decoding steps, alone and next to busy processes, by OpenMP's spin time.

    python benchmarks/shared_machine.py benchmarks/results/shared-machine.json

The loop is one of products (48 x 576) x (576 x 1536), as a decoding step makes, and (1024 x 576) x (576 x
1536), as a training step does, in the dtype of the machine, on all cores. Each figure is the median of
several turns; the kinds take turns.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SECONDS, TURNS = 4.0, 5
ROWS = {"decoding": 48, "training": 1024}
SPINS = {
    "libgomp's default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "fedsdr": {"GOMP_SPINCOUNT": "1000"},
}


def loop(rows: int) -> None:
    """Print how many products a second this process makes."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    x, w = torch.randn(rows, 576), torch.randn(576, 1536)
    for _ in range(20):
        x @ w
    start, done = time.monotonic(), 0
    while time.monotonic() - start < SECONDS:
        x @ w
        done += 1
    print(done / (time.monotonic() - start))


def measured(rows: int, spin: dict[str, str], num_busy: int) -> float:
    """Products per second next to this many busy processes."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_busy)]
    plain = {
        key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    try:
        done = subprocess.run(
            [sys.executable, __file__, "loop", str(rows)],
            env=plain | spin, capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        for process in busy:
            process.kill()
    return float(done.stdout)


def main(path: Path) -> None:
    """Measure all, and write the record."""
    cores = os.cpu_count() or 1
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for _ in range(TURNS):
        for name, rows in ROWS.items():
            for label, spin in SPINS.items():
                for num_busy in (0, cores):
                    places = found.setdefault(name, {}).setdefault(label, {})
                    places.setdefault(f"{num_busy} busy", []).append(measured(rows, spin, num_busy))
    for name, labels in found.items():
        for label, places in labels.items():
            alone, beside = (statistics.median(values) for values in places.values())
            ratio = f"{alone / beside:.2f} times as long"
            print(f"{name}, {label}: alone {alone:.1f}/s, beside {cores} busy {beside:.1f}/s, {ratio}")
    path.write_text(
        json.dumps({"cores": cores, "seconds": SECONDS, "products_per_second": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    if sys.argv[1] == "loop":
        loop(int(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
