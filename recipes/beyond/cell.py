"""One cell of the development of docs/results/beyond.md: an arm beyond the paper, as a cell of the study.

    python recipes/beyond/cell.py DATA OUT ARM SEED [key=value ...]

As recipes/study/cell.py, whose sizes and controls these arms share. Without arguments it prints the queue,
the most promising arm first, seed by seed: for xargs -P 2 -L 1 python recipes/beyond/cell.py DATA OUT.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))
import cell  # recipes/study/cell.py

ARMS: dict[str, dict[str, Any]] = {
    "fedsd-likelier": {"method": "fedsd", "distill.only": "likelier"},
    "fedsdr-drop": {"method": "fedsdr-drop"},
    "token-soft": {"method": "token-mask", "token_mask.soft": "true"},
    "token-mask": {"method": "token-mask"},
    "fedit-kl": {"method": "fedit", "client.drift_correction": "kl", "client.mu": 1.0},
    "fedsd-prose": {"method": "fedsd", "distill.only": '["general", "medicine"]'},
    "fedit-not-true": {"method": "fedit", "client.drift_correction": "not-true", "client.mu": 1.0},
    "fedsd-exp": {"method": "fedsd", "server.optimizer": "fedexp", "server.mean_of_rounds": 2},
    "fedsdr-once": {"method": "fedsdr-once"},
    "fedsd-representative": {"method": "fedsd", "distill.only": "representative"},
    "fedit-mean": {"method": "fedit", "server.mean_of_rounds": 2},
    "fedit-l2": {"method": "fedit", "client.drift_correction": "l2", "client.mu": 0.1},
    "fedit-not-true-light": {"method": "fedit", "client.drift_correction": "not-true", "client.mu": 0.3},
    "fedsdr-drop-mean": {"method": "fedsdr-drop", "server.mean_of_rounds": 2},
    "fedit-rehearsal": {"method": "fedit", "client.drift_correction": "rehearsal", "client.mu": 1.0},
    "fedit-rehearsal-strong": {"method": "fedit", "client.drift_correction": "rehearsal", "client.mu": 4.0},
    "fedsdr-rehearsal": {"method": "fedsdr", "client.drift_correction": "rehearsal", "client.mu": 1.0},
    "fedit-double": {"method": "fedit", "client.local_steps": 16},
}
"""Arm -> settings; the last six were added later (docs/results/beyond.md)."""
SEEDS = (0, 1, 2)

if __name__ == "__main__":
    if len(sys.argv) == 1:
        print("\n".join(f"{arm} {seed}" for seed in SEEDS for arm in ARMS))
    else:
        cell.ARMS |= ARMS
        cell.CURVES |= {"fedit-double"}
        cell.main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
