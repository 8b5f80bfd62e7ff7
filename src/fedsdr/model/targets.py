"""Selects the layers of a model that have adapters, and lists the weights without."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from fedsdr.errors import UserError

LINEAR = (nn.Linear, Conv1D)
"""Layer types that can have adapters."""
Layer = Any
"""A layer W0 h + bias. GPT-2's Conv1D is one with a transposed weight, (d_in, d_out)."""
OF_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""Names that experts had before transformers fused them, and that PEFT still interprets that way: layers with
these names (shared experts, the first blocks) would lose their adapters there, with only a warning."""
NUM_NAMED = 6
"""Number of names of weights without adapters shown in a line."""


def widths(layer: Layer) -> tuple[int, int]:
    """Return d_in and d_out."""
    return (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)


def find_targets(model: nn.Module, targets: str | tuple[str, ...]) -> dict[str, Layer]:
    """Find the linear layers for adapters: path -> layer, in the model's order.

    "all-linear" means all except the output head, as in PEFT, and except layers that PEFT would not load:
    next to fused experts, and the last layer of state-space blocks, whose kernels use its weight directly.

    Raises:
        UserError: The model has no such layer, or a target matches none; the message lists the valid names.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    has_experts = any("experts" in path and weight.dim() == 3 for path, weight in model.named_parameters())
    linear: dict[str, Layer] = {}
    for path, layer in model.named_modules():
        parent, _, name = path.rpartition(".")
        is_state_space = name == "out_proj" and hasattr(model.get_submodule(parent), "A_log")
        is_left_out = layer is head or is_state_space or (has_experts and name in OF_EXPERTS)
        if isinstance(layer, LINEAR) and not is_left_out:
            linear[path] = layer
    if not linear:
        raise UserError(f"the model ({type(model).__name__}) has no linear layer for an adapter; use another")
    if targets == "all-linear":
        return linear
    names = {path.rpartition(".")[2] for path in linear}
    unknown = sorted(set(targets) - names)
    if unknown:
        raise UserError(
            f"lora.targets: {', '.join(unknown)} matches no linear layer that can have an adapter; it"
            f" has: {', '.join(sorted(names))}"
        )
    return {path: layer for path, layer in linear.items() if path.rpartition(".")[2] in targets}


def without_adapter(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, int]:
    """Matrices of the model without adapters: name -> number of parameters.

    Examples are fused experts, routers and convolutions. Embeddings and the output head never have one, and
    are left out.

    Args:
        model: The base, with or without its adapters.
        layers: The layers with adapters, by path.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    found: dict[str, int] = {}
    for path, module in model.named_modules():
        if module is head or isinstance(module, nn.Embedding):
            continue
        if any(path == layer or path.startswith(f"{layer}.") for layer in layers):
            continue
        for name, weight in module.named_parameters(recurse=False):
            if weight.dim() > 1:
                words = [word for word in f"{path}.{name}".split(".") if not word.isdecimal()]
                found[".".join(words[-2:])] = found.get(".".join(words[-2:]), 0) + weight.numel()
    return found


def describe_adapters(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    """Describe which layers have adapters, and which weights have none, one line each.

    Args:
        model: The base with its adapters.
        layers: The layers with adapters, by path.
    """
    names = dict.fromkeys(path.rpartition(".")[2] for path in layers)
    lines = [f"adapters on {len(layers)} layers: {', '.join(names)}"]
    if missing := without_adapter(model, layers):
        total = sum(
            value.numel() for path, value in model.named_parameters() if path.split(".")[-2] not in ("A", "B")
        )
        few = sorted(missing, key=lambda name: -missing[name])[:NUM_NAMED]
        rest = f" and {len(missing) - NUM_NAMED} more" if len(missing) > NUM_NAMED else ""
        share = f"{sum(missing.values()) / total:.0%} of the model's weights"
        lines.append(f"  no adapters on {', '.join(few)}{rest}: {share}")
    return lines
