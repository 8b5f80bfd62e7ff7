"""How often things are broken: a few times in CI, often by `make test-faults`, which keeps a record."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.invariants.conftest import ending_folder, fresh_process, results, run_settings

__all__ = ["ending_folder", "fresh_process", "results", "run_settings"]  # fixtures


@pytest.fixture(scope="session")
def often() -> Callable[[int, int], int]:
    """Return how often to do a thing: ``often(5, 60)`` is 60 where the long form is asked for."""
    return lambda short, full: full if os.environ.get("FEDSDR_FULL") else short


@pytest.fixture(scope="session")
def record() -> Callable[..., None]:
    """Add a line to the record that docs/reliability.md is made of, where one is asked for."""

    def add(**values: Any) -> None:
        if place := os.environ.get("FEDSDR_RECORD"):
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            with Path(place).open("a") as file:
                file.write(json.dumps(values) + "\n")

    return add
