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
def lent(given: Any) -> Iterator[str]:
    """Yield a name under which `load_base` finds a model within the block.

    The model is temporarily saved in the cache folder and loaded like any other, so the caller's copy stays
    unchanged.

    Args:
        given: A pair of a causal language model from transformers and its tokenizer.

    Yields:
        "memory:" and a hash of weights, configuration, tokenizer and chat template.

    Raises:
        UserError: It is not a pair of a model and tokenizer from transformers.
    """
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    pair = given if isinstance(given, tuple) else (given,)
    kinds = (PreTrainedModel, PreTrainedTokenizerBase)
    if len(pair) != 2 or not all(map(isinstance, pair, kinds)):
        raise UserError(
            "model: expected the name of a model, or a pair of a transformers model and its tokenizer; found"
            f" {' and '.join(type(one).__name__ for one in pair) or 'nothing'}"
        )
    model, tokenizer = pair
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
