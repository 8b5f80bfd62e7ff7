"""Whether the states of a step fit into a GPU's memory, or are recomputed in the backward pass."""

from typing import Literal

import torch

from fedsdr.config import Model, Settings
from fedsdr.data.conversation import Conversation
from fedsdr.federation.estimate import ClientTexts, memory, sizes_of
from fedsdr.model.base import resolve_model
from fedsdr.model.meta import load_skeleton

ROOM = 0.5
"""Share of the free memory that an estimate may take: it was never compared with what a GPU took."""


def resolve_for(settings: Settings) -> Model:
    """Replace "auto" as `resolve_model` does, and for checkpointing by a GPU's free memory."""
    model = resolve_model(settings.model)
    if settings.model.gradient_checkpointing == "auto" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        share = settings.run.gpus_per_client or 1.0
        chosen = choose_gradient_checkpointing(
            settings.model_copy(update={"model": model}), free * min(share, 1.0)
        )
        model = model.model_copy(update={"gradient_checkpointing": chosen})
    return model


def choose_gradient_checkpointing(settings: Settings, free: float) -> Literal["on", "off"]:
    """Return "off" if a pass over the longest conversations fits into `free` bytes with states kept.

    The data are not read for this: every conversation is assumed to have the length model.max_length.

    Args:
        settings: With dtype and attention resolved; only the model's configuration is loaded.
        free: Free bytes of the device before the base is loaded.
    """
    skeleton, _ = load_skeleton(settings.model)
    longest = settings.model.max_length
    text = Conversation((0,) * longest, longest // 2)
    clients = [ClientTexts([text] * settings.client.batch_size, [text])]
    kept = settings.model.model_copy(update={"gradient_checkpointing": "off"})
    parts = memory(
        settings.model_copy(update={"model": kept}),
        sizes_of(skeleton, settings.adapter),
        clients,
        is_gpu=True,
    )
    needed = sum(part.num_bytes for part in parts if part.name not in ("generation", "peak"))
    return "off" if needed < ROOM * free else "on"
