"""Invariant 1: fedsdr whose private adapter is held at zero gives fedit's bytes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsdr
from fedsdr.client.update import local_update
from fedsdr.config import Settings
from fedsdr.model.adapters import LoraModel


def shared_adapters(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (folder / "server").glob("round-*/*.safetensors")}


def held_at_zero(model: LoraModel, *rest: Any, **more: Any) -> dict[str, float]:
    """The local update, but the private adapter learns from gradients of zero."""
    private = model.parameters(("private",))
    hooks = [parameter.requires_grad_().register_hook(torch.zeros_like) for parameter in private]
    metrics = local_update(model, *rest, **more)
    for hook in hooks:
        hook.remove()
    assert model.is_zero("private")
    return metrics


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fedsdr_with_private_held_at_zero_is_fedit(
    run_settings: Callable[..., Settings],
    finished: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
) -> None:
    # At these sizes kernels round differently at twice the rank, even if half of it is zero.
    run = {"model.dtype": dtype, "lora.rank": 5, "client.batch_size": 3}
    fedit = finished(method="fedit", **run)
    learnt = shared_adapters(finished(method="fedsdr", **run))
    monkeypatch.setattr("fedsdr.client.round.local_update", held_at_zero)
    zero = fedsdr.run(run_settings(method="fedsdr", **run)).folder

    assert len(learnt) == 3
    assert shared_adapters(zero) == shared_adapters(fedit)
    scores = [json.loads((run / "evaluation/round-0002.json").read_text())["global"] for run in (zero, fedit)]
    assert scores[0] == scores[1]
    # Were the private adapter idle anyway, the law would say nothing.
    assert learnt["round-0001"] != shared_adapters(fedit)["round-0001"]
