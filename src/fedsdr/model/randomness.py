"""Torch's own random numbers, which dropout draws: seeded on the devices of a run alone, and put back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Draw from the seed on the processor and on `device`; afterwards their generators are as before.

    `torch.manual_seed` would seed every GPU of the machine, and `fork_rng` save the state of each, with a
    warning where there are several.
    """
    is_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if is_gpu else []):
        torch.default_generator.manual_seed(seed)
        if is_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
