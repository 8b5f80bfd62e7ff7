"""Answers of the model to a batch of prompts: greedy or sampled, each prompt with its own seed.

One loop over a key-value cache, in which prompts are padded on the left; finished rows are taken out of
the batch. Sampling adds Gumbel noise from the prompt's own generator and takes the largest entry,
which draws exactly from the softmax (Gumbel-max), so a prompt's sample does not depend on which
prompts share its batch or on any global random state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from fedsdr.data.conversation import trimmed
from fedsdr.data.thinking import opened, without_thinking
from fedsdr.model.attention import RowCache, additive, in_one_row
from fedsdr.model.base import Base

TAIL = 8
"""Tokens at the end of a prompt in which a tag that opens thinking would be."""
COMPACT_BELOW = 0.75
"""Finished rows are taken out when fewer than this share of the rows is still being written."""


@dataclass(frozen=True)
class Answer:
    """What the model wrote."""

    text: str
    finished: bool
    """Whether the model ended its turn; False: cut off at the length limit."""
    num_tokens: int


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int
    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0


def generate(
    base: Base, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int] = ()
) -> list[Answer]:
    """Continue every prompt until the model ends its turn or the limit is reached.

    Called inside `LoraModel.inference`.

    Args:
        base: The model, with adapters set as wanted.
        prompts: Token ids of one batch.
        sampling: Limit, temperature and nucleus.
        seeds: One seed for each prompt; needed where the temperature is above 0.

    Returns:
        One answer for each prompt, in their order.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    ends = torch.tensor(base.model.generation_config.eos_token_id, device=base.device)
    head = base.model.get_output_embeddings()

    written: list[list[int]] = [[] for _ in prompts]
    finished = [False] * len(prompts)
    rows = list(range(len(prompts)))  # which prompt each row of the batch belongs to
    width = max(map(len, prompts))
    padding = torch.tensor([width - len(prompt) for prompt in prompts], device=base.device)
    states, cache = read(base, prompts)
    for num_written in range(1, sampling.max_new_tokens + 1):
        tokens = _choose(
            head(states).float(), sampling, [generators[row] for row in rows] if generators else []
        )
        ended = torch.isin(tokens, ends).tolist()
        for row, token, end in zip(rows, tokens.tolist(), ended, strict=True):
            if not finished[row] and not end:
                written[row].append(token)
            finished[row] = finished[row] or end
        open_rows = [place for place, row in enumerate(rows) if not finished[row]]
        if not open_rows or num_written == sampling.max_new_tokens:
            break
        if len(open_rows) < COMPACT_BELOW * len(rows) and is_selectable(cache):
            kept = torch.tensor(open_rows, device=base.device)
            cache.batch_select_indices(kept)
            tokens, padding = tokens[kept], padding[kept]
            rows = [rows[place] for place in open_rows]
        length = width + num_written
        states = next_states(base, cache, tokens, padding, length)
    texts = [_text(base.tokenizer, *pair) for pair in zip(prompts, written, strict=True)]
    return [
        Answer(text, done, len(tokens)) for text, done, tokens in zip(texts, finished, written, strict=True)
    ]


def read(base: Base, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Cache]:
    """States of the prompts' last tokens (prompts, d), and the cache to go on from."""
    return (_read_in_one_row if base.keeps_apart else _read_padded)(base, prompts)


def is_selectable(cache: Cache) -> bool:
    """Whether rows can be taken out; layers that keep a state instead of keys and values have no way to."""
    return all(hasattr(layer, "batch_select_indices") for layer in cache.layers)


def next_states(base: Base, cache: Cache, tokens: Tensor, padding: Tensor, length: int) -> Tensor:
    """States (rows, d) of one more token of each row.

    Args:
        base: The model, with adapters set as wanted.
        cache: Of all tokens before.
        tokens: The new ones (rows,).
        padding: How many columns of each row are padding (rows,).
        length: Columns with the new one.
    """
    columns = torch.arange(RowCache.room(length) if base.keeps_apart else length, device=base.device)
    visible = (columns >= padding[:, None]) & (columns < length)
    # transformers makes its own masks of (rows, columns), as sliding windows need them.
    mask = additive(visible[:, None, None], base.dtype) if base.keeps_apart else visible.long()
    states: Tensor = base.model.get_decoder()(
        input_ids=tokens[:, None],
        attention_mask=mask,
        position_ids=(length - 1 - padding)[:, None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, 0]
    return states


def _text(tokenizer: Any, prompt: Sequence[int], written: list[int]) -> str:
    """What the tokens say, without special tokens and without thinking before the answer."""
    tag = opened(tokenizer.decode(prompt[-TAIL:]))
    whole = tag + tokenizer.decode(written)
    answer = without_thinking(whole)
    if answer == whole and not tag:
        return trimmed(tokenizer.decode(written, skip_special_tokens=True))
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for content in special:
        answer = answer.replace(content, "")
    return trimmed(answer)


def _read_in_one_row(base: Base, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Cache]:
    """By our attention: no padding is computed."""
    lengths = [len(prompt) for prompt in prompts]
    cache = Cache(layers=[RowCache(lengths) for _ in range(base.model.config.num_hidden_layers)])
    ids = torch.tensor([[token for prompt in prompts for token in prompt]], device=base.device)
    states = base.model.get_decoder()(
        input_ids=ids, past_key_values=cache, use_cache=True, **in_one_row(lengths, base.device)
    ).last_hidden_state
    return states[0, torch.tensor(lengths, device=base.device).cumsum(0) - 1], cache


def _read_padded(base: Base, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Cache]:
    """The same by transformers' own means, for attention that knows one sequence a row."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(base.device), mask.to(base.device)
    cache = DynamicCache(config=base.model.config)
    states = base.model.get_decoder()(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return states[:, -1], cache


def _choose(logits: Tensor, sampling: Sampling, generators: list[torch.Generator]) -> Tensor:
    """Next token of each row (rows,) from logits (rows, vocabulary)."""
    if sampling.temperature == 0:
        return logits.argmax(dim=1)
    logits = logits / sampling.temperature
    if sampling.top_p < 1:
        ranked, order = logits.softmax(dim=1).sort(dim=1, descending=True)
        outside = ranked.cumsum(dim=1) - ranked >= sampling.top_p
        logits = logits.masked_fill(outside.scatter(1, order, outside), -torch.inf)
    uniform = torch.stack([torch.rand(logits.shape[1], generator=generator) for generator in generators])
    gumbel = -(-uniform.clamp(min=1e-20).log()).log()
    return (logits + gumbel.to(logits.device)).argmax(dim=1)
