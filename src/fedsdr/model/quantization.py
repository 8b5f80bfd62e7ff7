"""A base model in 4 or 8 bits, by bitsandbytes."""

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fedsdr.config import Model
from fedsdr.errors import UserError

if TYPE_CHECKING:
    import torch


def quantization(spec: Model, dtype: "torch.dtype") -> Any:
    """Return bitsandbytes' settings, or None. The output head is never quantised."""
    if spec.quantization == "none":
        return None
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization = {spec.quantization} requires bitsandbytes: pip install 'fedsdr[quant]'"
        )
    from transformers import BitsAndBytesConfig

    # It warns about a cast in each layer of each forward pass.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if spec.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def settle_kernels(spec: Model, model: Any) -> None:
    """Disable a kernel of 4-bit layers that has no backward pass."""
    if spec.quantization == "4bit":
        from bitsandbytes.nn import Linear4bit

        for layer in model.modules():
            if isinstance(layer, Linear4bit):
                # On some CPUs a forward pass without gradients repacks the weights for a kernel that has no
                # backward pass; later gradients would be silently wrong.
                layer.support_avx512bf16_for_cpu = False
