"""Adapters on disk, in PEFT's format: adapter_model.safetensors and adapter_config.json.

PEFT is not needed to write it; a test (invariant 9) checks that `PeftModel.from_pretrained` loads it with
equal logits.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fedsdr.config import Lora
from fedsdr.errors import UserError

Content = TypeVar("Content")
Value = TypeVar("Value", Tensor, Tensor | NDArray[np.float32])
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def save_adapter(folder: Path, state: dict[str, Tensor], lora: Lora, base: str) -> None:
    """Write an adapter into an existing folder.

    Args:
        folder: Existing folder to write to.
        state: Tensors by PEFT key: A (rank, d_in) and B (d_out, rank).
        lora: Rank, alpha and dropout.
        base: Name of the base model, written unchanged; PEFT and vLLM load the base by it.
    """
    # Not `save_file`: only the owner may read its files, and a server such as vLLM may be another user.
    (folder / WEIGHTS).write_bytes(save(state, metadata={"format": "pt"}))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted({key.split(".")[-3] for key in state}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "modules_to_save": None,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def join(*adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adapters as one of the summed rank: B_a A_a + B_b A_b = [B_a B_b] [A_a; A_b]."""
    return {
        key: torch.cat([adapter[key] for adapter in adapters], dim=0 if ".lora_A." in key else 1)
        for key in adapters[0]
    }


def scaled(state: Mapping[str, Value], scale: float) -> dict[str, Value]:
    """The adapter of `scale` times the change of the base: (scale B) A."""
    return {key: value * scale if ".lora_B." in key else value for key, value in state.items()}


def load_adapter(folder: Path) -> dict[str, Tensor]:
    """Read an adapter's tensors by PEFT key.

    Raises:
        UserError: The folder contains no adapter, or a damaged one.
    """
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} contains no adapter: {WEIGHTS} is missing")
    return read_whole(folder / WEIGHTS, load_file)


def read_whole(path: Path, load: Callable[[Path], Content]) -> Content:
    """Read a file of tensors by `load`: safetensors' `load_file` for torch or for NumPy.

    Raises:
        UserError: The file is damaged.
    """
    try:
        return load(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); expected tensors in the safetensors format") from None
