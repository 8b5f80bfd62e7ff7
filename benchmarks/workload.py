"""The workload of `make bench` and `make check-gpu`, and its operation count."""

import time

import numpy as np
import torch

from fedsdr.data.conversation import Conversation
from fedsdr.model.adapters import LoraModel
from fedsdr.model.loss import response_loss


def random_conversations(num: int, length: int, vocabulary: int = 40_000) -> list[Conversation]:
    """Conversations of one length, half prompt and half response."""
    rng = np.random.default_rng(0)
    rows = rng.integers(10, vocabulary, (num, length)).tolist()
    return [Conversation(tuple(row), length // 2) for row in rows]


def step_flops(model: LoraModel, batch: list[Conversation]) -> float:
    """GFLOP of the matrix products that one step executes, counted by torch as they run."""
    from torch.utils.flop_counter import FlopCounterMode

    model.set(("shared",), ("shared",))
    model.training(True)
    with FlopCounterMode(display=False) as counter:
        loss, _ = response_loss(model.base, batch)
        loss.backward()
    for parameter in model.parameters(("shared",)):
        parameter.grad = None
    return counter.get_total_flops() / 1e9


def product_rate(
    dtype: torch.dtype, shape: tuple[int, int, int] = (2048, 576, 1536), device: torch.device | None = None
) -> float:
    """GFLOP/s of a matrix product (m, k) x (k, n), as in SmolLM2; the best of many."""
    m, k, n = shape
    a, b = torch.randn(m, k, dtype=dtype, device=device), torch.randn(k, n, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(60):
        start = now(device)
        a @ b
        best = min(best, now(device) - start)
    return 2 * m * k * n / best / 1e9


def now(device: torch.device | None) -> float:
    """Seconds, when the device has done all that it was given."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
