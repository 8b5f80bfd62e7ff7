"""A round's folder: the shared adapter in PEFT's format, written aside and renamed whole.

A round is done when `server/round-0003` is there; nothing else decides where a run goes on.
"""

from pathlib import Path

import torch
from safetensors.numpy import load_file, save_file

from fedsdr.client.wire import Arrays
from fedsdr.config import Lora
from fedsdr.model.adapter_files import load_adapter, save_adapter
from fedsdr.server.optimize import Moments
from fedsdr.storage import list_rounds, round_folder, write_folder

MOMENTS = "optimizer.safetensors"


def last_round(folder: Path) -> int:
    """The last finished round, -1 if there is none."""
    return max(list_rounds(folder), default=-1)


def save_round(
    folder: Path, server_round: int, arrays: Arrays, moments: Moments, lora: Lora, base: str
) -> None:
    """Write a round: the adapter's two files directly in its folder, and the server optimizer's moments."""
    state = {key: torch.from_numpy(value.copy()) for key, value in arrays.items()}

    def fill(aside: Path) -> None:
        save_adapter(aside, state, lora, base)
        if moments:
            save_file(moments, aside / MOMENTS)

    write_folder(round_folder(folder, server_round), fill)


def load_moments(folder: Path, server_round: int) -> Moments:
    """Read the server optimizer's moments after a round; none before its first step and for fedavg."""
    path = round_folder(folder, server_round) / MOMENTS
    return load_file(path) if path.exists() else {}


def load_round(folder: Path, server_round: int) -> Arrays:
    """Read the shared adapter of a round by PEFT key."""
    state = load_adapter(round_folder(folder, server_round))
    return {key: tensor.numpy() for key, tensor in state.items()}
