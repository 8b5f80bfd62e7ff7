"""Federated instruction tuning by self-distillation with rectification: FedSD and FedSDR.

Public names are loaded when first used, so that importing the package is quick.

Paper: Ren, Shen, Wang, Liu, Song, "FedSDR: Federated Self-Distillation with Rectification", ICML
2026, arXiv 2605.18028.
"""

import os
from importlib import import_module
from importlib.metadata import version
from typing import Any

# Threads of OpenMP that wait for each other spin, which on a machine with other work takes the time of those
# that compute (docs/performance.md). libgomp reads this once, when torch is first imported. A user's own
# choice stays.
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "1000"

_HOME = {
    "Callback": "fedsdr.callbacks",
    "Example": "fedsdr.data.examples",
    "Settings": "fedsdr.config",
    "UserError": "fedsdr.errors",
    "compare": "fedsdr.experiments.compare",
    "dry_run": "fedsdr.federation.dry_run",
    "load_settings": "fedsdr.recipe",
    "register": "fedsdr.plugins",
    "resume": "fedsdr.federation.run",
    "run": "fedsdr.federation.run",
}
__version__ = version("fedsdr")
__all__ = [
    "Callback",
    "Example",
    "Settings",
    "UserError",
    "compare",
    "dry_run",
    "load_settings",
    "register",
    "resume",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fedsdr' has no attribute {name!r}")
