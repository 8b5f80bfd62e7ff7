"""A model passed in memory, for a run in the same process."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsdr.errors import UserError
from fedsdr.model.base import IN_MEMORY, MEMORY, identity_of, quiet
from fedsdr.model.download import cache_folder


@contextmanager
def lent(model: Any, tokenizer: Any) -> Iterator[str]:
    """Yield a name under which `load_base` finds a model within the block.

    The model is temporarily saved in the cache folder and loaded like any other, so the caller's copy stays
    unchanged.

    Args:
        model: A causal language model from transformers.
        tokenizer: Its tokenizer.

    Yields:
        "memory:" and a hash of weights, configuration, tokenizer and chat template.

    Raises:
        UserError: They are not a model and tokenizer from transformers.
    """
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if not (isinstance(model, PreTrainedModel) and isinstance(tokenizer, PreTrainedTokenizerBase)):
        raise UserError(
            "model: expected the name of a model, or a pair of a transformers model and its tokenizer; found"
            f" {type(model).__name__} and {type(tokenizer).__name__}"
        )
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="in-memory-", dir=cache_folder()) as place:
        with quiet():
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
        name = MEMORY + identity_of(Path(place), [str(tokenizer.chat_template)])[:16]
        IN_MEMORY[name] = Path(place)
        try:
            yield name
        finally:
            del IN_MEMORY[name]
