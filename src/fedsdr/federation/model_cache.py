"""The model of this process: one frozen base with its adapters serves all clients in sequence."""

import os
from functools import lru_cache
from pathlib import Path

import torch

from fedsdr.config import Lora, Model, Settings
from fedsdr.data.conversation import Conversation
from fedsdr.distill.rehearsal import synthetic_conversations
from fedsdr.methods import DRIFT_CORRECTIONS
from fedsdr.model.adapters import LoraModel
from fedsdr.model.allocator import keep_pages
from fedsdr.model.base import load_base
from fedsdr.model.trial import try_out

_loaded: dict[str, list[tuple[str, int, int]]] = {}
"""Name of the loaded model -> its files before they were read."""


@lru_cache(maxsize=1)
def load_model(spec: Model, lora: Lora, threads: int) -> LoraModel:
    """Load the base, attach both adapters, and try it out."""
    _loaded.clear()
    _loaded[spec.name] = _files(spec.name)
    torch.set_num_threads(threads or os.cpu_count() or 1)
    keep_pages()
    model = LoraModel(load_base(spec), lora)
    try_out(spec.name, model)
    return model


def model_of(settings: Settings) -> LoraModel:
    """The model of a run."""
    return load_model(settings.model, settings.adapter, settings.run.threads)


@lru_cache(maxsize=1)
def rehearsal(spec: Model, lora: Lora, threads: int, seed: int) -> list[Conversation]:
    """The synthetic conversations of a run, written once per process."""
    return synthetic_conversations(load_model(spec, lora, threads), seed)


def rehearsal_of(settings: Settings) -> list[Conversation]:
    """The conversations that clients rehearse; none if the drift correction does not."""
    if not DRIFT_CORRECTIONS[settings.client.drift_correction].rehearses:
        return []
    return rehearsal(settings.model, settings.adapter, settings.run.threads, settings.run.seed)


def forget_model() -> None:
    """Free the model, and what it wrote: files of the same name may change before the next run."""
    load_model.cache_clear()
    rehearsal.cache_clear()


def forget_changed_model() -> None:
    """Free the model if its files changed since: a run trains what is there when it begins."""
    if any(_files(name) != before for name, before in _loaded.items()):
        forget_model()


def _files(name: str) -> list[tuple[str, int, int]]:
    """Path, size and time of change of each file of a model; none of one from the hub or from memory."""
    path = Path(name).expanduser()
    files = path.iterdir() if path.is_dir() else [path]
    stats = ((str(file), file.stat()) for file in files if file.is_file())
    return sorted((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats)
