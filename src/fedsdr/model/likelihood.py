"""Likelihood of each of several answers to one prompt; the prompt is read once for all of them."""

from collections.abc import Sequence
from itertools import chain, islice

import torch
from torch import Tensor

from fedsdr.data.batching import in_batches, row_width
from fedsdr.data.conversation import encode
from fedsdr.data.examples import Example
from fedsdr.model.attention import additive
from fedsdr.model.base import Base
from fedsdr.model.loss import CHUNK

TokenisedQuestion = tuple[Sequence[int], Sequence[Sequence[int]]]
"""Token ids of a prompt, and of each answer to it."""

NO_LIMIT = 10**9
"""Length limit where nothing may be truncated."""


def likeliest(base: Base, examples: Sequence[Example], batch_size: int) -> list[str]:
    """Return the likeliest choice of each example as the whole answer (`choice_likelihoods`)."""
    return [
        example.choices[values.index(max(values))]
        for example, values in zip(examples, choice_likelihoods(base, examples, batch_size), strict=True)
    ]


def choice_likelihoods(base: Base, examples: Sequence[Example], batch_size: int) -> list[list[float]]:
    """Return log p of each choice of each example as the whole answer, end of turn included, in nats.

    They are not normalised by length: they are likelihoods of whole answers.
    """
    questions: list[TokenisedQuestion] = []
    for example in examples:
        texts = [encode(base.tokenizer, example, choice, NO_LIMIT) for choice in example.choices]
        length = texts[0].prompt_length
        questions.append((texts[0].ids[:length], [text.ids[length:] for text in texts]))
    return log_likelihoods(base, questions, batch_size)


def log_likelihoods(base: Base, questions: Sequence[TokenisedQuestion], batch_size: int) -> list[list[float]]:
    """Return log p(answer given prompt) of each answer, in nats, summed over its tokens.

    A question is one row: the prompt, then all answers. A mask hides the answers from each other, and each
    starts at the position after the prompt. With attention that was not tested on such rows, each answer has
    its own row. Call it inside `LoraModel.inference`.

    Args:
        base: The model, with the desired adapters active.
        questions: Prompts with their answers, each of at least one token.
        batch_size: Questions in one forward pass.
    """
    return [[value for value, _ in values] for values in scored_answers(base, questions, batch_size)]


def scored_answers(
    base: Base, questions: Sequence[TokenisedQuestion], batch_size: int
) -> list[list[tuple[float, bool]]]:
    """As `log_likelihoods`, and whether each answer is greedy: every token is the likeliest."""
    if not base.keeps_apart and any(len(answers) > 1 for _, answers in questions):
        alone = [(prompt, [answer]) for prompt, answers in questions for answer in answers]
        values = chain.from_iterable(scored_answers(base, alone, batch_size))
        return [list(islice(values, len(answers))) for _, answers in questions]
    lengths = [_length(question) for question in questions]
    return in_batches(questions, lengths, batch_size, lambda some: _of_batch(base, some))


def _length(question: TokenisedQuestion) -> int:
    prompt, answers = question
    return len(prompt) + sum(map(len, answers))


def _of_batch(base: Base, questions: Sequence[TokenisedQuestion]) -> list[list[tuple[float, bool]]]:
    width = row_width(max(map(_length, questions)))
    ids = torch.zeros(len(questions), width, dtype=torch.long)
    places = torch.zeros_like(ids)
    part = torch.full_like(ids, -1)  # 0: prompt, k: answer k, -1: padding
    read_at: list[int] = []  # flattened index of the state that predicts a token, and the token
    tokens: list[int] = []
    for row, (prompt, answers) in enumerate(questions):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        places[row, : len(prompt)] = torch.arange(len(prompt))
        part[row, : len(prompt)] = 0
        start = len(prompt)
        for number, answer in enumerate(answers, start=1):
            taken = slice(start, start + len(answer))
            ids[row, taken] = torch.tensor(answer)
            places[row, taken] = torch.arange(len(prompt), len(prompt) + len(answer))
            part[row, taken] = number
            read_at += [row * width + place for place in (len(prompt) - 1, *range(start, taken.stop - 1))]
            tokens += answer
            start = taken.stop
    log_p = iter(_log_p(base, ids, places, _visible(part), read_at, tokens))
    of_answers = [[[next(log_p) for _ in answer] for answer in answers] for _, answers in questions]
    return [
        [(sum(value for value, _ in tokens), all(best for _, best in tokens)) for tokens in answers]
        for answers in of_answers
    ]


def _visible(part: Tensor) -> Tensor:
    """Attention mask (rows, 1, width, width): earlier tokens of the prompt and of the same answer."""
    reader, read = part[:, :, None], part[:, None, :]
    earlier = torch.ones(part.shape[1], part.shape[1], dtype=torch.bool).tril()
    return (((read == 0) | (read == reader)) & earlier)[:, None]


def _log_p(
    base: Base, ids: Tensor, places: Tensor, visible: Tensor, read_at: list[int], tokens: list[int]
) -> list[tuple[float, bool]]:
    """Log probability of each token, and whether it is the likeliest."""
    states = base.model.get_decoder()(
        input_ids=ids.to(base.device),
        position_ids=places.to(base.device),
        # With one answer and right padding, transformers' own causal mask is equivalent.
        attention_mask=additive(visible.to(base.device), base.dtype) if base.keeps_apart else None,
        use_cache=False,
    ).last_hidden_state.flatten(0, 1)
    found: list[tuple[float, bool]] = []
    for start in range(0, len(tokens), CHUNK):
        at, wanted = (
            torch.tensor(values[start : start + CHUNK], device=base.device) for values in (read_at, tokens)
        )
        logits = base.model.get_output_embeddings()(states[at])
        log_p = logits.log_softmax(dim=1, dtype=torch.float32)
        likeliest = (log_p.argmax(dim=1) == wanted).tolist()
        found += zip(log_p.gather(1, wanted[:, None])[:, 0].tolist(), likeliest, strict=True)
    return found
