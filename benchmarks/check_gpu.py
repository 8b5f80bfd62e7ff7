"""Check and measure training and rewriting on one GPU, without network, in at most 8 minutes.

    make check-gpu        (or: PYTHONPATH=src python benchmarks/check_gpu.py RESULT.json)

A bare machine needs PyTorch, transformers, and the folder that `make gpu-packages` fills on a machine with a
network. Models have the shapes of SmolLM2-135M and Qwen2.5-7B and random weights, made on the GPU; nothing is
fetched. Each row is saved to RESULT.json when it ends, a failed one with its error; a table comes last.
Rows with TRL or bitsandbytes are left out if these are not installed. Peak memory is PyTorch's count.

Not yet run on a GPU. `--dry` runs all rows with tiny shapes on a CPU.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fedsdr.client.update import local_update
from fedsdr.config import Client, Lora
from fedsdr.methods import METHODS
from fedsdr.model.adapters import LoraModel
from fedsdr.model.attention import replace_norms
from fedsdr.model.base import Base
from fedsdr.model.generation import Sampling, generate
from fedsdr.model.targets import find_targets
from fedsdr.model.tiny import build_tiny
from workload import now, product_rate, random_conversations, step_flops

LIMIT = 470
"""Seconds after which what is still running is given up."""
SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064,
    "max_position_embeddings": 32_768, "tie_word_embeddings": False,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 448,
}  # fmt: skip
DRY = {"batch": 2, "length": 16, "steps": 2, "rows": 4, "prompt": 8, "new": 4}
"""Sizes of a dry run."""

Numbers = dict[str, Any]


def build(
    shapes: Numbers,
    device: torch.device,
    dtype: str = "bfloat16",
    attention: str = "sdpa",
    checkpointing: bool = False,
    four_bits: bool = False,
    rank: int = 8,
    made_on: str = "",
) -> LoraModel:
    """Build a model with adapters and random weights, which depend on the device."""
    torch.manual_seed(0)
    with torch.device(made_on or device):
        model = _random(shapes, dtype, attention)
    model.to(device).requires_grad_(False).eval()
    model.generation_config.eos_token_id = [-1]  # no answer ends before the limit
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if four_bits:
        _quantise(model, getattr(torch, dtype))
    if attention == "grouped":
        replace_norms(model)
    is_own = attention in ("grouped", "packed")
    base = Base(model, _tokenizer(), "random", "random", getattr(torch, dtype), device, is_own)
    loaded = LoraModel(base, Lora(rank=rank, alpha=2 * rank))
    loaded.initialise("shared", 1)
    return loaded


def _random(shapes: Numbers, dtype: str, attention: str) -> Any:
    config = AutoConfig.for_model(**shapes, bos_token_id=1, eos_token_id=2)
    return AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, dtype), attn_implementation=attention
    )


def _quantise(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace all linear layers except the head by 4-bit layers, as loaded by transformers."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for path, layer in find_targets(model, "all-linear").items():
        device = layer.weight.device
        new = Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype, device="meta"
        )
        new.weight = Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
        ).to(device)
        new.bias = layer.bias
        new.support_avx512bf16_for_cpu = False  # as in `fedsdr.model.quantization`
        model.set_submodule(path, new)


@cache
def _tokenizer() -> Any:
    """Any tokenizer: training uses random tokens, and nobody reads the answers."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        build_tiny(folder)
        return AutoTokenizer.from_pretrained(folder)


def device_rate(device: torch.device, dry: bool = False) -> Numbers:
    """Rate of a large matrix product in bfloat16, as the reference for the steps."""
    return {"product_gflops": product_rate(torch.bfloat16, (64,) * 3 if dry else (8192,) * 3, device)}


def loss_against_processor(
    shapes: Numbers, device: torch.device, batch: int = 4, length: int = 64, steps: int = 20
) -> Numbers:
    """Train the same weights on the same data here and on the CPU, and compare the last step's loss.

    Differences are relative to the decrease on the CPU.
    """
    data = random_conversations(batch, length, shapes["vocab_size"])
    client = Client(batch_size=batch, local_steps=steps)
    found = {}
    for name, at, dtype in (
        ("cpu_loss", torch.device("cpu"), "float32"),
        ("float32_loss", device, "float32"),
        ("bfloat16_loss", device, "bfloat16"),
    ):
        model = build(shapes, at, dtype, made_on="cpu")
        metrics = local_update(model, METHODS["fedit"], {"raw": data}, client, 1e-3, 0)
        found[name] = metrics["train/shared/last_loss"]
        found.setdefault("cpu_first_loss", metrics["train/shared/first_loss"])
    decrease = found["cpu_first_loss"] - found["cpu_loss"]
    found["difference_of_float32"] = abs(found["float32_loss"] - found["cpu_loss"]) / decrease
    found["difference_of_bfloat16"] = abs(found["bfloat16_loss"] - found["cpu_loss"]) / decrease
    return found


def train(
    shapes: Numbers, device: torch.device, rate: float, batch: int, length: int, steps: int, **options: Any
) -> Numbers:
    """Time a local update of FedIT; one before it warms up."""
    model = build(shapes, device, **options)
    data = random_conversations(batch * steps, length, shapes["vocab_size"])
    client = Client(batch_size=batch, local_steps=steps)
    gflop = step_flops(model, data[:batch])
    local_update(model, METHODS["fedit"], {"raw": data}, client, 2e-4, 0)
    _forget_peak(device)
    start = now(device)
    local_update(model, METHODS["fedit"], {"raw": data}, client, 2e-4, 1)
    seconds = (now(device) - start) / steps
    return {
        "step_seconds": seconds,
        "tokens_per_second": batch * length / seconds,
        "peak_gb": _peak_gb(device),
        "share_of_product_rate": gflop / seconds / rate,
    }


def train_trl(shapes: Numbers, device: torch.device, batch: int, length: int, steps: int) -> Numbers:
    """Time TRL's trainer on a model of the same shapes, adapters, data and steps."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig, SFTTrainer

    with torch.device(device):
        model = _random(shapes, "bfloat16", "sdpa")
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    rows = [
        {
            "input_ids": list(one.ids),
            "completion_mask": [0] * one.prompt_length + [1] * one.num_response_tokens,
        }
        for one in random_conversations(batch * steps, length, shapes["vocab_size"])
    ]
    seconds = 0.0
    for _ in range(2):  # the first warms up
        with tempfile.TemporaryDirectory() as aside, contextlib.redirect_stdout(io.StringIO()):
            config = SFTConfig(
                output_dir=aside, max_steps=steps, per_device_train_batch_size=batch, learning_rate=2e-4,
                bf16=True, gradient_checkpointing=False, max_length=None, report_to=[], save_strategy="no",
                logging_strategy="no", disable_tqdm=True, use_cpu=device.type == "cpu",
            )  # fmt: skip
            trainer = SFTTrainer(
                model=model, processing_class=_tokenizer(), train_dataset=Dataset.from_list(rows), args=config
            )
            _forget_peak(device)
            start = now(device)
            trainer.train()
            seconds = (now(device) - start) / steps
    return {
        "step_seconds": seconds,
        "tokens_per_second": batch * length / seconds,
        "peak_gb": _peak_gb(device),
    }


def write_answers(
    shapes: Numbers, device: torch.device, rows: int, prompt: int, new: int, **options: Any
) -> Numbers:
    """Time greedy answers as in rewriting, after a short warm-up."""
    model = build(shapes, device, **options)
    prompts = [one.ids for one in random_conversations(rows, prompt, shapes["vocab_size"])]
    with model.inference(()):
        generate(model.base, prompts, Sampling(2))
        _forget_peak(device)
        start = now(device)
        answers = generate(model.base, prompts, Sampling(new))
        seconds = now(device) - start
    num_tokens = sum(answer.num_tokens for answer in answers)
    return {
        "seconds": seconds,
        "tokens_per_second": num_tokens / seconds,
        "peak_gb": _peak_gb(device),
    }


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gb(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def plan(device: torch.device, rate: float, dry: bool) -> dict[str, Callable[[], Numbers]]:
    """Rows by name, the most important ones first."""
    small, large = (shapes | TINY if dry else shapes for shapes in (SMOLLM2, QWEN_7B))
    sizes = {"batch": 8, "length": 512, "steps": 8}
    few = {"batch": 4, "length": 512, "steps": 4}
    answers = {"rows": 48, "prompt": 128, "new": 96}
    if dry:
        sizes, few, answers = ({key: DRY[key] for key in some} for some in (sizes, few, answers))
    train_small = partial(train, small, device, rate, **sizes)
    train_large = partial(train, large, device, rate, rank=32, **few)
    compared = {key: DRY[key] for key in sizes} if dry else {}
    rows: dict[str, Callable[[], Numbers]] = {
        "SmolLM2: loss after 20 steps": partial(loss_against_processor, small, device, **compared),
        "SmolLM2, bfloat16": train_small,
        "7B, bfloat16, checkpointing": partial(train_large, checkpointing=True),
        "7B, bfloat16": train_large,
        "7B, 4 bits, checkpointing": partial(train_large, checkpointing=True, four_bits=True),
        "SmolLM2: rewriting": partial(write_answers, small, device, **answers),
        "7B: rewriting": partial(write_answers, large, device, **answers),
        "SmolLM2, bfloat16, checkpointing": partial(train_small, checkpointing=True),
        "SmolLM2, packed rows": partial(train_small, attention="packed"),
        "SmolLM2: rewriting, packed rows": partial(
            write_answers, small, device, **answers, attention="packed"
        ),
        "SmolLM2, 4 bits": partial(train_small, four_bits=True),
        "SmolLM2, TRL": partial(train_trl, small, device, **sizes),
    }
    for name in [*rows]:
        for word, package in (("4 bits", "bitsandbytes"), ("TRL", "trl")):
            if word in name and not find_spec(package):
                print(f"{name}: left out, {package} is not installed", flush=True)
                del rows[name]
    return rows


def table(rows: list[Numbers]) -> str:
    """Rows of Markdown, with the numbers that most rows have."""
    shown = ("step_seconds", "tokens_per_second", "peak_gb", "share_of_product_rate")
    lines = [
        "| row | s a step | tokens/s | peak GB | share of a product's rate | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        others = {key: value for key, value in row.items() if key not in (*shown, "row", "row_seconds")}
        cells = [_short(row.get(key)) for key in shown]
        rest = ", ".join(f"{key} {_short(value)}" for key, value in others.items())
        lines.append(f"| {row['row']} | {' | '.join(cells)} | {rest} |")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value or "")


def main(result: Path, dry: bool) -> int:
    """Measure all rows; return how many failed."""
    if not dry and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU; --dry runs tiny shapes on the processor")
    begun = time.perf_counter()
    device = torch.device("cpu" if dry else "cuda")
    machine = {
        "device": platform.processor() if dry else torch.cuda.get_device_name(),
        "memory_gb": None if dry else torch.cuda.get_device_properties(0).total_memory / 1e9,
        "torch": torch.__version__, "transformers": transformers.__version__,
        "python": platform.python_version(), "dry": dry,
    }  # fmt: skip
    done: list[Numbers] = []

    def record(row: Numbers) -> None:
        done.append(row)
        result.parent.mkdir(parents=True, exist_ok=True)
        whole = {"machine": machine, "seconds": time.perf_counter() - begun, "rows": done}
        result.write_text(json.dumps(whole, indent=2) + "\n")
        print(table([row]).splitlines()[-1], flush=True)

    def give_up() -> None:
        print(f"\n{LIMIT} s are over; the row that was running is lost\n\n{table(done)}", flush=True)
        os._exit(1)

    watch = threading.Timer(LIMIT, give_up)
    watch.daemon = True
    watch.start()
    rate = device_rate(device, dry)
    record({"row": "matrix product, bfloat16", **rate})
    for name, measured in plan(device, rate["product_gflops"], dry).items():
        start = time.perf_counter()
        try:
            found = measured()
        except (
            Exception
        ) as error:  # of any kind, out of memory above all: the other rows are still worth having
            found = {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
        record({"row": name, **found, "row_seconds": time.perf_counter() - start})
        gc.collect()  # a model refers to itself
        if not dry:
            torch.cuda.empty_cache()
    watch.cancel()
    print(f"\n{table(done)}\n\nwritten to {result}")
    return sum("error" in row for row in done)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("result", type=Path, nargs="?", default=Path("benchmarks/results/gpu.json"))
    arguments.add_argument("--dry", action="store_true", help="tiny shapes on the processor")
    given = arguments.parse_args()
    sys.exit(main(given.result, given.dry) > 0)
