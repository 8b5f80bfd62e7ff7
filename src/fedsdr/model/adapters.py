"""Two LoRA adapters, `shared` and `private`, on one frozen base model.

Forward (FedSDR, both streams active): h_out = W0 h + (alpha/r) (B_r A_r + B_s A_s) h. The factors
of the active adapters are concatenated along the rank, so that two adapters cost the same as one: [B_r B_s]
[A_r; A_s] h. Master weights are float32 and are cast for computing; W0 is never written. The term that an
aggregation adds to W0 is a third pair of factors, the residual. It is never trained, has its own rank, and is
in the forward pass whenever the shared adapter is, since both belong to the global model.

The paper's LoRA-R is `shared` and its LoRA-S is `private`.

Paper: Ren et al., FedSDR, ICML 2026, arXiv 2605.18028; LoRA: Hu et al., ICLR 2022, arXiv 2106.09685.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from fedsdr.config import Lora
from fedsdr.errors import UserError
from fedsdr.model.base import Base
from fedsdr.model.targets import Layer, describe_adapters, find_targets, widths
from fedsdr.rows import Adapter, Factor
from fedsdr.seeds import seed_for

Values = Tensor | NDArray[np.float32]
ADAPTERS: tuple[Adapter, ...] = get_args(Adapter)
PREFIX = "base_model.model."
"""PEFT's prefix before a layer's path in the keys of an adapter file."""


class _LoraProduct(torch.autograd.Function):
    """W0 h + bias + b a h with W0 frozen: sums are in place, and only h and a h are saved."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        flat = h.flatten(0, -2)
        narrow = flat @ a.T
        out = F.linear(flat, weight, bias).addmm_(narrow, b.T)
        ctx.save_for_backward(flat, narrow, weight, a, b)
        return out.unflatten(0, h.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        flat, narrow, weight, a, b = ctx.saved_tensors
        g = outer[0].flatten(0, -2)
        g_narrow = g @ b
        wanted_h, _, _, wanted_a, wanted_b = ctx.needs_input_grad
        grad_h = (g @ weight).addmm_(g_narrow, a).unflatten(0, outer[0].shape[:-1]) if wanted_h else None
        grad_a = g_narrow.T @ flat if wanted_a else None
        grad_b = (narrow.T @ g).T if wanted_b else None
        return grad_h, None, None, grad_a, grad_b


class LoraLinear(nn.Module):
    """A frozen linear layer W0 (d_out, d_in) and the factors of both adapters."""

    def __init__(self, base: Layer, lora: Lora) -> None:
        super().__init__()
        self.base = base
        self.scale = lora.alpha / lora.rank
        self.dropout = nn.Dropout(lora.dropout)
        device, (d_in, d_out) = base.weight.device, widths(base)
        self.A = nn.ParameterDict({name: torch.zeros(lora.rank, d_in, device=device) for name in ADAPTERS})
        self.B = nn.ParameterDict({name: torch.zeros(d_out, lora.rank, device=device) for name in ADAPTERS})
        self.active: tuple[Adapter, ...] = ()
        self.mix: Mapping[Adapter, float] = {}
        self.residual: tuple[Tensor, Tensor] | None = None
        self.uses_residual = False
        self.ready: tuple[Tensor, Tensor] | None = None
        self.ranks: Tensor | None = None
        """1 at the ranks that a token uses, 0 at the others (tokens, n); None: all (`model.multi_lora`)."""

    def forward(self, h: Tensor) -> Tensor:
        """Compute W0 h + (alpha/r) B A h.

        Args:
            h: Hidden state (batch, sequence, d_in).

        Returns:
            Hidden state (batch, sequence, d_out).
        """
        if not self.is_active:
            return self.base(h)
        if not (self.training and self.dropout.p):
            a, b = self.ready or self.factors(h.dtype)
            if self.ranks is not None:
                flat = h.flatten(0, -2)
                out = self.base(flat).addmm_((flat @ a.T).mul_(self.ranks), b.T)
                return out.unflatten(0, h.shape[:-1])
            if type(self.base) is nn.Linear:
                return _LoraProduct.apply(h, self.base.weight, self.base.bias, a, b)
            return self.base(h) + F.linear(F.linear(h, a), b)
        out = self.base(h)  # the residual represents a change of W0, whose input has no dropout
        for x, pairs in ((self.dropout(h), self._adapter_pairs()), (h, self._residual_pairs())):
            if pairs:
                a, b = self._concatenated(pairs, h.dtype)
                out = out + F.linear(F.linear(x, a), b)
        return out

    @property
    def is_active(self) -> bool:
        """Whether any adapter or residual is added to W0 h."""
        return bool(self.active) or self.uses_residual

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Concatenate the active factors along the rank: A (n r + m, d_in) and (alpha/r) B (d_out, n r + m).

        If an adapter has a weight in `mix`, its B is scaled by it, and so are its gradients. A factor that is
        not trained has `requires_grad` False, so it has no gradient.
        """
        return self._concatenated(self._adapter_pairs() + self._residual_pairs(), dtype)

    def _adapter_pairs(self) -> list[tuple[Tensor, Tensor]]:
        return [
            (self.A[name], self.B[name] * self.mix[name] if name in self.mix else self.B[name])
            for name in self.active
        ]

    def _residual_pairs(self) -> list[tuple[Tensor, Tensor]]:
        return [self.residual] if self.uses_residual and self.residual else []

    def _concatenated(
        self, pairs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        a = torch.cat([a for a, _ in pairs], dim=0)
        b = torch.cat([b for _, b in pairs], dim=1)
        return a.to(dtype), (b * self.scale).to(dtype)


class LoraModel:
    """The frozen base and both adapters: which are active, which are trained, their tensors by PEFT key."""

    def __init__(self, base: Base, lora: Lora) -> None:
        """Attach adapters to the linear layers of the base that match `lora.targets`.

        Raises:
            UserError: A target matches no linear layer of the model.
        """
        self.base = base
        self.layers = {
            path: LoraLinear(layer, lora) for path, layer in find_targets(base.model, lora.targets).items()
        }
        for path, layer in self.layers.items():
            self._replace(path, layer)
        # With checkpointing, blocks recompute their states in the backward pass, but only in training mode.
        self.blocks = [
            module for module in base.model.modules() if isinstance(module, GradientCheckpointingLayer)
        ]
        self.set(active=(), train=())

    def set(
        self,
        active: Sequence[Adapter],
        train: Sequence[Adapter],
        shared_factors: Sequence[Factor] = ("A", "B"),
        mix: Mapping[Adapter, float] | None = None,
    ) -> None:
        """Choose the adapters in the forward pass and, among them, the trained ones.

        An adapter with B = 0 that is not trained adds exactly nothing and is left out of the products.
        (Kernels may round differently at another rank, so this also makes fedsdr with a zero private adapter
        bit-identical to fedit.) Only `shared_factors` of the shared adapter are trained. `mix` holds weights
        of adapters in the forward pass; the default weight is one.
        """
        used = tuple(name for name in active if name in train or not self.is_zero(name))
        for layer in self.layers.values():
            layer.active, layer.mix, layer.ready, layer.ranks = used, mix or {}, None, None
            layer.uses_residual = "shared" in active and layer.residual is not None
            for name in ADAPTERS:
                for factor, tensors in (("A", layer.A), ("B", layer.B)):
                    learns = name in train and (name == "private" or factor in shared_factors)
                    tensors[name].requires_grad_(learns)

    def describe(self) -> list[str]:
        """Describe which layers have adapters, and which weights have none, one line each."""
        return describe_adapters(self.base.model, self.layers)

    def is_zero(self, name: Adapter) -> bool:
        """Whether every B of the adapter is zero."""
        return not any(layer.B[name].any() for layer in self.layers.values())

    @contextmanager
    def with_only(self, active: tuple[Adapter, ...]) -> Iterator[None]:
        """Temporarily activate these adapters alone, unweighted; which ones are trained does not change."""
        before = [(layer, layer.active, layer.mix, layer.uses_residual) for layer in self.layers.values()]
        for layer in self.layers.values():
            layer.active, layer.mix = active, {}
            layer.uses_residual = "shared" in active and layer.residual is not None
        try:
            yield
        finally:
            for layer, used, mix, uses_residual in before:
                layer.active, layer.mix, layer.uses_residual = used, mix, uses_residual

    @contextmanager
    def inference(
        self, active: Sequence[Adapter], mix: Mapping[Adapter, float] | None = None
    ) -> Iterator[None]:
        """Activate adapters for many forward passes without gradient: factors are cast once."""
        self.set(active, train=(), mix=mix)
        try:
            with torch.inference_mode():
                self.training(False)
                for layer in self.layers.values():
                    layer.ready = layer.factors(self.base.dtype) if layer.is_active else None
                yield
        finally:
            self.set(active=(), train=())

    def training(self, mode: bool) -> None:
        """Switch dropout and checkpointing on or off."""
        for layer in self.layers.values():
            layer.train(mode)
        for block in self.blocks:
            block.training = mode  # of the block only: a base model's own dropout stays off

    def parameters(self, names: Sequence[Adapter]) -> list[nn.Parameter]:
        """Parameters of the named adapters, A before B, in the order of the layers."""
        return [
            factor[name] for layer in self.layers.values() for name in names for factor in (layer.A, layer.B)
        ]

    def initialise(self, name: Adapter, seed: int) -> None:
        """Draw A by Kaiming's uniform rule with a = sqrt(5) and set B to zero, like PEFT."""
        for path, layer in self.layers.items():
            a = layer.A[name]
            generator = torch.Generator().manual_seed(seed_for(seed, path))
            bound = math.sqrt(1 / a.shape[1])
            fresh = torch.rand(a.shape, generator=generator) * (2 * bound) - bound
            a.data.copy_(fresh)
            layer.B[name].data.zero_()

    def state(self, name: Adapter) -> dict[str, Tensor]:
        """Copy the adapter's tensors: float32 on the CPU, with PEFT's keys."""
        return {key: tensor.detach().to("cpu", copy=True) for key, tensor in self.tensors(name).items()}

    def shapes(self, name: Adapter) -> dict[str, tuple[int, ...]]:
        """Shapes of the adapter's tensors, by the same keys."""
        return {key: tuple(tensor.shape) for key, tensor in self.tensors(name).items()}

    def load(self, name: Adapter, state: Mapping[str, Values]) -> None:
        """Overwrite the adapter's values; everything else stays unchanged, including `requires_grad`.

        Args:
            name: Which adapter.
            state: Tensors of torch or arrays of NumPy by PEFT key: A (rank, d_in) and B (d_out, rank).

        Raises:
            UserError: A key is missing or unknown, or a shape differs.
        """
        tensors = self.tensors(name)
        check_keys(tensors, state)
        for key, tensor in tensors.items():
            tensor.data.copy_(torch.as_tensor(state[key]))

    def load_residual(self, state: Mapping[str, Values]) -> None:
        """Set the residual on W0: A (m, d_in) and B (d_out, m) by PEFT key; {} for none."""
        for path, layer in self.layers.items():
            a, b = (torch.as_tensor(state[_key(path, letter)]) if state else None for letter in "AB")
            device = layer.base.weight.device
            layer.residual = None if a is None or b is None else (a.to(device), b.to(device))

    def merge(self, name: Adapter) -> None:
        """Merge an adapter into the base and remove all adapters; for export, as the last use."""
        for path, layer in self.layers.items():
            product = layer.B[name] @ layer.A[name] * layer.scale
            weight = layer.base.weight
            weight.data += (product.T if isinstance(layer.base, Conv1D) else product).to(weight.dtype)
            self._replace(path, layer.base)

    def _replace(self, path: str, layer: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        setattr(self.base.model.get_submodule(parent), name, layer)

    def tensors(self, name: Adapter) -> dict[str, nn.Parameter]:
        """The adapter's own tensors, by PEFT key."""
        return {
            _key(path, letter): factor[name]
            for path, layer in self.layers.items()
            for letter, factor in (("A", layer.A), ("B", layer.B))
        }


def adapter_shapes(model: nn.Module, lora: Lora) -> dict[str, tuple[int, ...]]:
    """Shapes of an adapter's tensors by PEFT key, on a model that may have no weights (`model.meta`)."""
    return {
        _key(path, letter): shape
        for path, layer in find_targets(model, lora.targets).items()
        for letter, shape in (("A", (lora.rank, widths(layer)[0])), ("B", (widths(layer)[1], lora.rank)))
    }


def _key(path: str, letter: str) -> str:
    """PEFT's key of a factor of a layer."""
    return f"{PREFIX}{path}.lora_{letter}.weight"


def check_keys(expected: Mapping[str, nn.Parameter], found: Mapping[str, Values]) -> None:
    """Compare the keys and shapes of an adapter with those of the model.

    Raises:
        UserError: States the number of differing keys and the first of them.
    """
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    if missing or extra:
        words = [
            f"{len(keys)} {what}, first {keys[0]}"
            for keys, what in ((missing, "missing"), (extra, "unknown"))
            if keys
        ]
        raise UserError(f"the adapter does not fit the model: keys {' and '.join(words)}")
    for key, tensor in expected.items():
        if tensor.shape != found[key].shape:
            raise UserError(
                f"the adapter does not fit the model: {key} has shape {tuple(found[key].shape)},"
                f" expected {tuple(tensor.shape)}; is lora.rank the same?"
            )
