"""Torch's global generators, used by dropout: seeded on the run's devices only, and restored."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the CPU and `device`; afterwards restore their generators.

    `torch.manual_seed` would seed every GPU of the machine, and `fork_rng` would save the state of each, with
    a warning if there are several.
    """
    is_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if is_gpu else []):
        torch.default_generator.manual_seed(seed)
        if is_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
