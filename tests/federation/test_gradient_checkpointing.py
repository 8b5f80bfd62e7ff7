"""Gradient checkpointing is chosen by memory: off where a step fits with its states kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from fedsdr.config import Settings
from fedsdr.federation.gradient_checkpointing import choose_gradient_checkpointing, resolve_for
from fedsdr.model.tiny import build_tiny

GB = 1e9
SHAPES_7B = {
    "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152_064,
}  # fmt: skip


def test_what_fits_is_not_computed_twice(tmp_path: Path):
    """Qwen2.5-7B's shapes, 16 conversations of 512 tokens: the base alone is 15 GB, its states 24 GB more."""
    build_tiny(tmp_path)  # for its tokenizer
    AutoConfig.for_model("qwen2", **SHAPES_7B).save_pretrained(tmp_path)

    def chosen(free: float, batch_size: int = 16, **model: Any) -> str:
        spec = {"name": str(tmp_path), "dtype": "bfloat16", "attention": "sdpa", **model}
        return choose_gradient_checkpointing(Settings(model=spec, client={"batch_size": batch_size}), free)

    assert chosen(24 * GB) == "on"
    assert chosen(80 * GB) == "on"
    assert chosen(80 * GB, batch_size=1) == "off"
    assert chosen(24 * GB, batch_size=1, quantization="4bit") == "off"  # not by quantization alone
    assert chosen(24 * GB, quantization="4bit") == "on"


@pytest.mark.parametrize(("free", "chosen"), [(1e6, "on"), (1e12, "off")])
def test_auto_looks_at_the_gpu(
    tiny_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, free: float, chosen: str
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 2e12))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    settings = tiny_settings(**{"model.dtype": "auto"})
    model = resolve_for(settings)
    assert (model.dtype, model.attention, model.gradient_checkpointing) == ("bfloat16", "sdpa", chosen)
    off = settings.model.model_copy(update={"gradient_checkpointing": "off"})
    assert resolve_for(settings.model_copy(update={"model": off})).gradient_checkpointing == "off"
