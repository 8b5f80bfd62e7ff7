"""A round's folder: the shared adapter in PEFT's format, written aside and renamed whole.

A round is done when `server/round-0003` is there; nothing else decides where a run goes on.
"""

from pathlib import Path

import torch

from fedsdr.config import Lora
from fedsdr.model.adapter_files import load_adapter, save_adapter
from fedsdr.server.combine import Arrays
from fedsdr.storage import list_rounds, round_folder, write_folder


def last_round(folder: Path) -> int:
    """The last finished round, -1 if there is none."""
    return max(list_rounds(folder), default=-1)


def save_round(folder: Path, server_round: int, arrays: Arrays, lora: Lora, base: str) -> None:
    """Write a round: adapter_model.safetensors and adapter_config.json directly in its folder."""
    state = {key: torch.from_numpy(value.copy()) for key, value in arrays.items()}
    write_folder(round_folder(folder, server_round), lambda aside: save_adapter(aside, state, lora, base))


def load_round(folder: Path, server_round: int) -> Arrays:
    """Read the shared adapter of a round by PEFT key."""
    state = load_adapter(round_folder(folder, server_round))
    return {key: tensor.numpy() for key, tensor in state.items()}
