"""Rehearsal: prompts that the base makes up and its own answers to them, which keep the base's behaviour.

1. Prompts: the base continues the opening of a user turn in its chat template, at temperature 1. A chat model
   then writes what users ask, so neither data nor a list of prompts is needed.
2. Answers: greedy, of at most 64 tokens.
3. Training: each step of the shared adapter adds mu KL(p_0 || p) on a few of these answers (`client.drift`).

Papers: Robins, "Catastrophic forgetting, rehearsal and pseudorehearsal", Connection Science 1995 (the old
model's outputs on made-up inputs); Xu et al., "Magpie", ICLR 2025, arXiv 2406.08464 (prompts from the
template's opening); Huang et al., "Self-Synthesized Rehearsal", ACL 2024, arXiv 2403.01244 (rehearsal by the
model's own text; differs: there examples are given to the model, and cross entropy is trained on).
"""

from collections.abc import Sequence
from dataclasses import replace

from fedsdr.data.batching import by_length
from fedsdr.data.conversation import Conversation, encode, encode_prompt, prompt_turns
from fedsdr.data.examples import Example
from fedsdr.data.template import render, tokens
from fedsdr.errors import UserError
from fedsdr.model.adapters import LoraModel
from fedsdr.model.generation import Sampling, generate
from fedsdr.model.likelihood import NO_LIMIT
from fedsdr.progress import track, within
from fedsdr.seeds import seed_for

LONGEST_ANSWER = 64
"""Maximum number of tokens of a base's answer, and of a prompt that it makes up."""
NUM_REHEARSED = 128
"""Number of conversations that are made up, the same at all clients."""
MARK = "\N{SYMBOL FOR UNIT SEPARATOR}"
"""Text that no template contains."""


def rehearsal(model: LoraModel, seed: int, num: int = NUM_REHEARSED) -> list[Conversation]:
    """Conversations that the base makes up; the weights of their tokens are 0, since no loss counts them.

    Args:
        model: Its adapters are not used.
        seed: Seed of the run.
        num: Prompts to be made up; empty ones are left out.
    """
    with within("rehearsal"):
        prompts = [prompt for prompt in make_up_prompts(model, num, seed) if prompt]
        answers = base_answers(model, prompts, num)
    return [replace(one, weights=(0.0,) * one.num_response_tokens) for one in answers]


def make_up_prompts(model: LoraModel, num: int, seed: int) -> list[str]:
    """Sample user turns from the base: it continues the template's text before a user's words.

    Raises:
        UserError: There is no such text.
    """
    tokenizer = model.base.tokenizer
    opening, _, _ = render(tokenizer, [{"role": "user", "content": MARK}]).partition(MARK)
    if not opening:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} has no text before a user's words, so the base"
            " cannot make up prompts: set client.drift_correction to another than rehearsal"
        )
    seeds = [seed_for(seed, "rehearsal", number) for number in range(num)]
    with model.inference(()):
        turns = generate(
            model.base, [tokens(tokenizer, opening)] * num, Sampling(LONGEST_ANSWER, temperature=1.0), seeds
        )
    return [turn.text for turn in turns]


def base_answers(model: LoraModel, prompts: Sequence[str], batch_size: int) -> list[Conversation]:
    """The prompts with the base's greedy answers, in order; a truncated answer has no end of turn."""
    tokenizer = model.base.tokenizer
    examples = [Example(prompt, "", "prompts") for prompt in prompts]
    ids = [encode_prompt(tokenizer, prompt_turns(example)) for example in examples]
    found: dict[int, Conversation] = {}
    plan = by_length([len(prompt) for prompt in ids], batch_size)
    with model.inference(()):
        for rows in track(plan, "answers of the base", [len(rows) for rows in plan]):
            answers = generate(model.base, [ids[row] for row in rows], Sampling(LONGEST_ANSWER))
            for row, answer in zip(rows, answers, strict=True):
                whole = encode(tokenizer, examples[row], answer.text, NO_LIMIT)
                end = whole.prompt_length + LONGEST_ANSWER if not answer.finished else len(whole.ids)
                # Retokenised text may differ from the generated tokens; at least one token is scored.
                cut = whole.ids[:end] if answer.finished else _without_end(tokenizer, whole, end)
                found[row] = Conversation(cut, whole.prompt_length)
    return [found[row] for row in range(len(prompts))]


def _without_end(tokenizer: object, whole: Conversation, end: int) -> tuple[int, ...]:
    """Remove the end of turn, which the template adds, from a truncated answer."""
    empty = encode(tokenizer, Example("a", "", "prompts"), "", NO_LIMIT).num_response_tokens
    return whole.ids[: max(whole.prompt_length + 1, min(end, len(whole.ids) - empty))]
