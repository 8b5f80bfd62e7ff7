"""Rehearsal: synthetic prompts of the base and its own answers, on which training keeps the base's behaviour.

1. Prompts: the base continues the opening of a user turn in its chat template, at temperature 1. A chat model
   then writes what users ask, so neither data nor a list of prompts is needed.
2. Answers: greedy. Prompts and answers have at most 64 tokens.
3. Training: each step of the shared adapter adds mu KL(p_0 || p) on a few of these answers (`client.drift`).

Papers: Robins, "Catastrophic forgetting, rehearsal and pseudorehearsal", Connection Science 1995 (the old
model's outputs on synthetic inputs); Xu et al., "Magpie", ICLR 2025, arXiv 2406.08464 (prompts from the
template's opening); Huang et al., "Self-Synthesized Rehearsal", ACL 2024, arXiv 2403.01244 (rehearsal by the
model's own text; differs: there examples are given to the model, and cross entropy is trained on).
"""

from collections.abc import Sequence
from dataclasses import replace

from fedsdr.data.batching import in_batches
from fedsdr.data.conversation import Conversation, encode, encode_prompt, prompt_turns
from fedsdr.data.examples import Example
from fedsdr.data.template import render, tokens
from fedsdr.data.thinking import is_unclosed
from fedsdr.errors import UserError
from fedsdr.model.adapters import LoraModel
from fedsdr.model.generation import Answer, Sampling, generate
from fedsdr.model.likelihood import NO_LIMIT
from fedsdr.progress import within
from fedsdr.seeds import seed_for

NUM_PROMPTS = 128
"""Number of synthetic prompts, the same at all clients."""
LENGTH = 64
"""Maximum number of tokens of a synthetic prompt, and of its answer."""
NUM_ROWS = 32
"""Number of prompts or answers written together."""
MARK = "\N{SYMBOL FOR UNIT SEPARATOR}"
"""Text that no template contains."""


def synthetic_conversations(model: LoraModel, seed: int, num: int = NUM_PROMPTS) -> list[Conversation]:
    """Synthetic prompts with the base's answers, whose tokens have weight 0, since no loss counts them.

    Args:
        model: Its adapters are not used.
        seed: Seed of the run.
        num: Number of prompts; empty ones, and those without an answer, are left out.

    Raises:
        UserError: No conversation is left, or the template has no opening of a user turn.
    """
    with within("rehearsal"):
        prompts = [prompt for prompt in synthetic_prompts(model, num, seed) if prompt]
        answers = _greedy(model, prompts, NUM_ROWS, LENGTH)
    found = [
        _conversation(model.base.tokenizer, prompt, answer, LENGTH)
        for prompt, answer in zip(prompts, answers, strict=True)
        if not is_unclosed(answer.text)
    ]
    found = [replace(one, weights=(0.0,) * n) for one in found if (n := one.num_response_tokens)]
    if not found:
        raise UserError(
            f"{model.base.tokenizer.name_or_path} writes no prompts and answers of its own, which"
            " client.drift_correction = rehearsal needs: set it to kl, or take a chat model"
        )
    return found


def synthetic_prompts(model: LoraModel, num: int, seed: int) -> list[str]:
    """Sample user turns from the base: it continues the template's text before a user's words.

    Raises:
        UserError: There is no such text.
    """
    tokenizer = model.base.tokenizer
    opening, mark, closing = render(tokenizer, [{"role": "user", "content": MARK}]).partition(MARK)
    if not opening or not mark:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} has no text before a user's words, so the base"
            " cannot write prompts: set client.drift_correction to another than rehearsal"
        )
    prompt, sampling = tokens(tokenizer, opening), Sampling(LENGTH, temperature=1.0)
    seeds = [seed_for(seed, "rehearsal", number) for number in range(num)]
    with model.inference(()):
        turns = generate(model.base, [prompt] * num, sampling, seeds, NUM_ROWS)
    # Where a user turn ends by text instead of an end token, the base continues with an answer.
    return [turn.text.partition(closing.strip() or MARK)[0].strip() for turn in turns]


def base_answers(
    model: LoraModel, prompts: Sequence[str], batch_size: int, longest: int
) -> list[Conversation]:
    """The prompts with the base's greedy answers, in order; a truncated answer has no end of turn.

    Args:
        model: Its adapters are not used.
        prompts: Instructions.
        batch_size: Answers written together.
        longest: Maximum number of tokens of an answer.
    """
    answers = _greedy(model, prompts, batch_size, longest)
    pairs = zip(prompts, answers, strict=True)
    return [_conversation(model.base.tokenizer, prompt, answer, longest) for prompt, answer in pairs]


def _greedy(model: LoraModel, prompts: Sequence[str], batch_size: int, longest: int) -> list[Answer]:
    tokenizer = model.base.tokenizer
    ids = [encode_prompt(tokenizer, prompt_turns(Example(prompt, "", "prompts"))) for prompt in prompts]

    def of_batch(some: list[list[int]]) -> list[Answer]:
        return generate(model.base, some, Sampling(longest))

    with model.inference(()):
        return in_batches(ids, [len(prompt) for prompt in ids], batch_size, of_batch, "answers of the base")


def _conversation(tokenizer: object, prompt: str, answer: Answer, longest: int) -> Conversation:
    whole = encode(tokenizer, Example(prompt, "", "prompts"), answer.text, NO_LIMIT)
    if answer.finished:
        return Conversation(whole.ids, whole.prompt_length)
    # The template adds an end of turn. Retokenised text may differ from the generated tokens.
    empty = encode(tokenizer, Example("a", "", "prompts"), "", NO_LIMIT).num_response_tokens
    end = min(whole.prompt_length + longest, len(whole.ids) - empty)
    return Conversation(whole.ids[: max(whole.prompt_length + 1, end)], whole.prompt_length)
