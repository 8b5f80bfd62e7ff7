"""Invariant 13: with secure aggregation the server has the sum of the updates, and no update."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message
from safetensors.numpy import load_file

import fedsdr
from fedsdr.config import Settings
from fedsdr.federation.local_engine import LocalGrid
from fedsdr.messages.flower import CLIENT_FAILED

SECURE = {"privacy.secure_aggregation": True, "method": "fedsdr"}


def adapter(folder: Path, number: int) -> dict[str, np.ndarray]:
    return load_file(folder / f"server/round-{number:04d}/adapter_model.safetensors")


def test_the_global_model_is_that_of_the_plain_mean_up_to_the_rounding_of_the_sum(
    finished: Callable[..., Path],
):
    secure, plain = finished(**SECURE), finished(method="fedsdr", **{"server.max_change": 0})
    for key, value in adapter(plain, 1).items():
        assert np.abs(adapter(secure, 1)[key] - value).max() < 3 * 8 / 2**30 + 1e-7
