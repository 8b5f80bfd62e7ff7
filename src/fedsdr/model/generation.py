"""Answers of the model to prompts: greedy or sampled, each prompt with its own seed.

One loop over a key-value cache; new prompts take the rows of finished answers. Sampling adds Gumbel noise
from the prompt's own generator and takes the largest entry, which samples exactly from the softmax
(Gumbel-max). A prompt's noise therefore depends neither on the other prompts in its batch nor on any global
random state; its logits may depend on them in their last bits (`Base.has_independent_rows`).
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from fedsdr.data.batching import by_length
from fedsdr.data.conversation import trimmed
from fedsdr.data.thinking import opened, without_thinking
from fedsdr.model.attention import RowCache, Slots, additive, in_one_row
from fedsdr.model.base import Base
from fedsdr.progress import track

TAIL = 8
"""Number of tokens at the end of a prompt that are searched for an opening thinking tag."""
PIECE = 2048
"""Tokens of prompts that are read at once: more would need more memory, and be no faster."""
REFILL_FROM = 0.1
"""New prompts are read when at least this share of the rows is free."""
COMPACT_BELOW = 0.75
"""Finished rows are removed when less than this share of the rows is active."""

Route = Callable[[Sequence[int]], None]
"""Given a number for each token of the next forward pass: the index of its prompt, or of its model."""


def no_route(of_tokens: Sequence[int]) -> None:
    """All prompts have the same model."""


@dataclass(frozen=True)
class Answer:
    """A generated answer."""

    text: str
    finished: bool
    """Whether the model ended its turn; False: truncated at the length limit."""
    num_tokens: int


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token."""

    max_new_tokens: int
    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0


def generate(
    base: Base,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int] = (),
    num_rows: int = 0,
    route: Route = no_route,
) -> list[Answer]:
    """Continue every prompt until the model ends its turn or the limit is reached.

    The longest prompts come first. With attention that separates packed conversations, new prompts take the
    rows of finished ones; otherwise batches follow each other. Call it inside `LoraModel.inference`.

    Args:
        base: The model, with the desired adapters active.
        prompts: Token ids.
        sampling: Limit, temperature and nucleus.
        seeds: One seed for each prompt; required if the temperature is above 0.
        num_rows: Number of answers generated together; 0: all.
        route: Called before each forward pass of packed conversations, with the indices of the prompts.

    Returns:
        The answers, in the order of the prompts.
    """
    num_rows = num_rows or len(prompts)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    plan = by_length([len(prompt) for prompt in prompts], num_rows)
    if base.keeps_apart and plan:
        plan = [list(chain.from_iterable(plan))]
    written = chain.from_iterable(
        _write(base, prompts, sampling, generators, places, num_rows, route) for places in plan
    )
    found = dict(track(written, "answers", [1] * len(prompts)))
    return [found[place] for place in range(len(prompts))]


def _write(
    base: Base,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    places: Sequence[int],
    num_rows: int,
    route: Route,
) -> Iterator[tuple[int, Answer]]:
    """Yield the index of a prompt and its answer, in order of completion."""
    ends = torch.tensor(base.model.generation_config.eos_token_id, device=base.device)
    head = base.model.get_output_embeddings()
    unused = torch.Generator()
    written: dict[int, list[int]] = {place: [] for place in places}
    first, waiting = places[:num_rows], deque(places[num_rows:])

    def of(read: Sequence[int]) -> Route:
        return lambda of_tokens: route([read[place] for place in of_tokens])

    batch = begin(base, [prompts[place] for place in first], of(first))
    rows: list[int | None] = [*first, *[None] * (len(batch.states) - len(first))]  # None: a free row
    while True:
        of_rows = [unused if row is None else generators[row] for row in rows] if generators else []
        tokens = _choose(head(batch.states).float(), sampling, of_rows)
        ended = torch.isin(tokens, ends).tolist()
        for place, (row, token, end) in enumerate(zip(rows, tokens.tolist(), ended, strict=True)):
            if row is None:
                continue
            if not end:
                written[row].append(token)
            if end or len(written[row]) == sampling.max_new_tokens:
                tokens_of_row = written.pop(row)
                yield row, Answer(_text(base.tokenizer, prompts[row], tokens_of_row), end, len(tokens_of_row))
                rows[place] = None
        if not written:
            return
        is_open = [row is not None for row in rows]
        free = [place for place, is_written in enumerate(is_open) if not is_written]
        if not waiting and sum(is_open) < COMPACT_BELOW * len(rows):
            kept = batch.keep([place for place, is_written in enumerate(is_open) if is_written])
            rows, tokens, is_open = [rows[k] for k in kept], tokens[kept], [is_open[k] for k in kept]
        route([row or 0 for row in rows])  # free rows: of any prompt
        batch.step(tokens, torch.tensor(is_open, device=base.device))
        if waiting and len(free) >= REFILL_FROM * len(rows):
            new = [waiting.popleft() for _ in free[: len(waiting)]]
            for place, row in zip(free, new, strict=False):
                rows[place] = row
            batch.read(free[: len(new)], [prompts[row] for row in new], of(new))


def rows_are_independent(base: Base) -> bool:
    """Whether an answer is bit-identical whatever the rest of its batch; tried on a few prompts.

    It holds if matrix products add in the same order for any number of rows, as bfloat16 products do on CPUs
    that support it. Prompts can then be batched freely, even across clients, and the run equals a deployment,
    where clients cannot share batches.
    """
    alone = [[*range(3, 12)], [*range(20, 26)]]
    others = [[*range(4, 304)], *([*range(5, 5 + num)] for num in range(4, 14))]
    found = []
    with torch.inference_mode():
        for prompts in (alone, [*others, *alone], [*alone, *others[1:], *others[1:]]):
            batch, at = begin(base, prompts), prompts.index(alone[0])
            states = [batch.states[at : at + 2]]
            for token in (30, 31, 32):
                tokens = torch.full((len(batch.states),), token, device=base.device)
                batch.step(tokens, torch.ones_like(tokens, dtype=torch.bool))
                states.append(batch.states[at : at + 2])
            found.append(torch.stack(states))
    return all(torch.equal(found[0], other) for other in found[1:])


def begin(base: Base, prompts: Sequence[Sequence[int]], route: Route = no_route) -> "Rows | Padded":
    """Read the prompts of a batch; `route` is called as in `generate`."""
    return Rows(base, prompts, route) if base.keeps_apart else Padded(base, prompts)


class Rows:
    """A batch of answers with our attention: no padding is computed, and rows are independent."""

    MULTIPLE = 4
    """The number of rows is a multiple of this: smaller products use other kernels."""

    def __init__(self, base: Base, prompts: Sequence[Sequence[int]], route: Route) -> None:
        num = self._whole(len(prompts))
        self.base, self.slots = base, Slots(num, base.device)
        self.cache = Cache(layers=[RowCache(self.slots) for _ in range(base.model.config.num_hidden_layers)])
        self.states = torch.zeros(num, base.model.config.hidden_size, dtype=base.dtype, device=base.device)
        """State of the last token of each row (rows, d)."""
        self.read(range(len(prompts)), prompts, route)

    @classmethod
    def _whole(cls, num: int) -> int:
        return -(-num // cls.MULTIPLE) * cls.MULTIPLE

    def read(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], route: Route) -> None:
        """Start new answers in free rows."""
        self.slots.used[[*rows]] = torch.tensor([len(prompt) for prompt in prompts], device=self.base.device)
        self.slots.fit()
        for start, end in _pieces(prompts):
            route([place for place in range(start, end) for _ in prompts[place]])
            self._read_piece(rows[start:end], prompts[start:end])

    def _read_piece(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        lengths, device = [len(prompt) for prompt in prompts], self.base.device
        ids = torch.tensor([[token for prompt in prompts for token in prompt]], device=device)
        self.slots.reading = [*rows], lengths
        states = self.base.model.get_decoder()(
            input_ids=ids, past_key_values=self.cache, use_cache=True, **in_one_row(lengths, device)
        ).last_hidden_state
        self.slots.reading = None
        self.states[[*rows]] = states[0, torch.tensor(lengths, device=device).cumsum(0) - 1]

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Keep these rows, padded to a valid number with others; return the remaining rows."""
        others = [row for row in range(len(self.states)) if row not in rows]
        left = [*rows, *others[: self._whole(len(rows)) - len(rows)]]
        kept = torch.tensor(left, device=self.base.device)
        self.slots.used = self.slots.used[kept]
        self.slots.used[len(rows) :] = 0
        self.slots.fit()
        for layer in self.cache.layers:
            layer.batch_select_indices(kept)
        self.states = self.states[kept]
        return left

    def step(self, tokens: Tensor, is_open: Tensor) -> None:
        """Append one token to each row (rows,); rows that are not open stay empty."""
        slots = self.slots
        slots.used *= is_open
        if int(slots.used.max()) >= slots.room:
            slots.fit()
        columns = torch.arange(slots.room, device=self.base.device)
        visible = columns <= slots.used[:, None]
        self.states = (
            self.base.model.get_decoder()(
                input_ids=tokens[:, None],
                attention_mask=additive(visible[:, None, None], self.base.dtype),
                position_ids=slots.used[:, None],
                past_key_values=self.cache,
                use_cache=True,
            )
            .last_hidden_state[:, 0]
            .clone()
        )
        slots.used += is_open


def _pieces(prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """First and end of the prompts that are read together: at most `PIECE` tokens, or one prompt."""
    start, tokens = 0, 0
    for place, prompt in enumerate(prompts):
        if tokens and tokens + len(prompt) > PIECE:
            yield start, place
            start, tokens = place, 0
        tokens += len(prompt)
    yield start, len(prompts)


class Padded:
    """A batch of answers with transformers' own cache, for attention with one sequence per row."""

    def __init__(self, base: Base, prompts: Sequence[Sequence[int]]) -> None:
        self.base, self.length = base, max(map(len, prompts))
        ids = torch.zeros(len(prompts), self.length, dtype=torch.long)
        mask = torch.zeros(len(prompts), self.length, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, self.length - len(prompt) :] = torch.tensor(prompt)
            mask[row, self.length - len(prompt) :] = 1
        self.mask = mask.to(base.device)
        self.cache = DynamicCache(config=base.model.config)
        self.states = self._states(ids.to(base.device), (self.mask.cumsum(dim=1) - 1).clamp(min=0))

    def read(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], route: Route) -> None:
        """Not supported: no answer can join a running batch."""
        raise NotImplementedError

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop the other rows; impossible for layers with a state instead of keys and values."""
        if not all(hasattr(layer, "batch_select_indices") for layer in self.cache.layers):
            return [*range(len(self.mask))]
        kept = torch.tensor(rows, device=self.base.device)
        self.cache.batch_select_indices(kept)
        self.mask, self.states = self.mask[kept], self.states[kept]
        return [*rows]

    def step(self, tokens: Tensor, is_open: Tensor) -> None:
        """Append one token to each row (rows,)."""
        del is_open
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        self.states = self._states(tokens[:, None], self.mask.sum(dim=1, keepdim=True) - 1)

    def _states(self, ids: Tensor, positions: Tensor) -> Tensor:
        states: Tensor = self.base.model.get_decoder()(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return states


def _text(tokenizer: Any, prompt: Sequence[int], written: list[int]) -> str:
    """The text of the tokens, without special tokens and without thinking before the answer."""
    tag = opened(tokenizer.decode(prompt[-TAIL:]))
    whole = tag + tokenizer.decode(written)
    answer = without_thinking(whole)
    if answer == whole and not tag:
        return trimmed(tokenizer.decode(written, skip_special_tokens=True))
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for content in special:
        answer = answer.replace(content, "")
    return trimmed(answer)


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
