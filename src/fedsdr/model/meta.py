"""The base model without its weights: every shape, from the configuration alone.

On torch's meta device a tensor has a shape but no values. Adapters can therefore be attached to a model of
any size in a second, and their size is counted by the code that trains and sends them.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsdr.config import Model
from fedsdr.errors import Unreachable, UserError
from fedsdr.model.base import BUILT_IN, built_in_folder, find, first_line, quiet
from fedsdr.model.chat_template import settle_template
from fedsdr.model.checks import check_length, settle_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_skeleton(spec: Model) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase | None"]:
    """Build the model on the meta device; no weights are fetched, read or converted.

    Args:
        spec: The recipe's [model].

    Returns:
        The model, and its tokenizer if available.

    Raises:
        Unreachable: The configuration is on the hub and cannot be downloaded.
        UserError: A folder or file contains no model, model.max_length exceeds the model's limit, or its chat
            template is unusable.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config, tokenizer = _read(spec)
    with quiet(), torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"model.name = {spec.name} cannot be built: {first_line(error)}") from None
    model.requires_grad_(False)
    if tokenizer is not None:
        settle_tokens(spec.name, model, tokenizer)
    return model, tokenizer


def hide_torch(spec: Model) -> None:
    """Avoid importing torch in a process that only reads a tokenizer, if it is not imported yet.

    transformers imports torch if it is installed, which takes seconds. Afterwards the process cannot load a
    model.
    """
    is_made = spec.name == "tiny" and not built_in_folder("tiny").is_dir()
    if not is_made and not spec.name.endswith(".gguf"):  # those need torch for generation and reading
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # the warning that torch is missing
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def load_tokenizer(spec: Model) -> "PreTrainedTokenizerBase":
    """Load the tokenizer alone, with the settings written into its chat template; torch is not needed.

    Raises:
        Unreachable: It is unavailable, or its configuration is on the hub and cannot be downloaded.
        UserError: As for `load_skeleton`.
    """
    _, tokenizer = _read(spec)
    if tokenizer is None:
        raise Unreachable(f"the tokenizer of model.name = {spec.name} is unavailable")
    return tokenizer


def _read(spec: Model) -> tuple[Any, Any]:
    """Configuration and tokenizer (None if unavailable); length and template are checked."""
    from transformers import AutoConfig, AutoTokenizer

    source, from_hub = _source(spec)
    with quiet():
        try:
            config = AutoConfig.from_pretrained(**source)
        except (OSError, ValueError, ImportError) as error:
            kind = Unreachable if from_hub else UserError
            raise kind(
                f"model.name = {spec.name}: its configuration is unavailable: {first_line(error)}"
            ) from None
        try:
            tokenizer = AutoTokenizer.from_pretrained(**source)
        except (OSError, ValueError, ImportError):
            tokenizer = None
    check_length(spec, config)
    if tokenizer is not None:
        settle_template(spec, tokenizer)
    return config, tokenizer


def _source(spec: Model) -> tuple[dict[str, Any], bool]:
    """Where transformers finds the configuration, and whether that is the hub."""
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    path = Path(spec.name).expanduser()
    if path.suffix == ".gguf":  # only its header is read; nothing is converted
        return {**options, "pretrained_model_name_or_path": path.parent, "gguf_file": path.name}, False
    if spec.name in BUILT_IN and BUILT_IN[spec.name]["hub"] and not built_in_folder(spec.name).is_dir():
        return {**options, "pretrained_model_name_or_path": BUILT_IN[spec.name]["hub"]}, True
    folder, _ = find(spec.name)
    if folder is None:
        options["revision"] = spec.revision or "main"
    return {**options, "pretrained_model_name_or_path": folder or spec.name}, folder is None
