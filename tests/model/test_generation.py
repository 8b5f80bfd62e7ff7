"""Answers: greedy ones are transformers' own, sampled ones are draws from the softmax, row by row."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from fedsdr.config import Settings
from fedsdr.data.conversation import trimmed
from fedsdr.model import generation
from fedsdr.model.base import Base, load_base
from fedsdr.model.generation import Answer, Sampling, _choose, generate

LENGTHS = (3, 40, 17, 8)
PROMPTS = [
    torch.randint(3, 400, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in LENGTHS
]
NUM_NEW = 20
"""More than a cache allocates in one step."""


@pytest.fixture(scope="module")
def eager(tiny_settings: Callable[..., Settings]) -> Base:
    """The tiny model with transformers' own attention."""
    return load_base(tiny_settings(**{"model.attention": "eager"}).model)


def ask(
    base: Base, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int] = ()
) -> list[Answer]:
    with torch.inference_mode():
        return generate(base, prompts, sampling, seeds)


def reference(base: Base, prompt: list[int], ends: list[int]) -> list[int]:
    """New tokens by transformers' own `generate`, one prompt at a time, up to the end of turn."""
    return base.model.generate(
        torch.tensor([prompt]), max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=ends
    )[0, len(prompt) :].tolist()


@pytest.fixture
def ends(tiny_base: Base, eager: Base, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """End tokens that make the first prompt stop after 2 tokens and the third after 5, if not before."""
    free = [reference(eager, prompt, [2]) for prompt in PROMPTS]
    chosen = [2, free[0][2], free[2][5]]
    monkeypatch.setattr(tiny_base.model.generation_config, "eos_token_id", chosen)
    return chosen


@pytest.mark.parametrize("attention", ["grouped", "packed", "eager", "sdpa"])
def test_greedy_answers_are_those_of_transformers_whatever_the_lengths(
    tiny_base: Base, eager: Base, tiny_settings, ends, monkeypatch: pytest.MonkeyPatch, attention: str
):
    base = load_base(tiny_settings(**{"model.attention": attention}).model)
    monkeypatch.setattr(base.model.generation_config, "eos_token_id", ends)
    answers = ask(base, PROMPTS, Sampling(NUM_NEW))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = reference(eager, prompt, ends)
        assert answer.finished == (tokens[-1] in ends)
        if answer.finished:
            tokens.pop()
        assert answer.num_tokens == len(tokens)
        assert answer.text == trimmed(tiny_base.tokenizer.decode(tokens, skip_special_tokens=True))
    assert {answer.finished for answer in answers} == {True, False}


def test_a_row_that_leaves_the_batch_changes_no_other_answer(
    tiny_base: Base, ends, monkeypatch: pytest.MonkeyPatch
):
    rows: list[int] = []
    hook = tiny_base.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"]) if "lengths" not in kwargs else 8),
        with_kwargs=True,
    )
    prompts = [*PROMPTS, *PROMPTS]
    found = {}
    for name, share in (("kept", 0.0), ("usual", generation.COMPACT_BELOW), ("at once", 1.01)):
        monkeypatch.setattr(generation, "COMPACT_BELOW", share)
        rows.clear()
        found[name] = ask(tiny_base, prompts, Sampling(NUM_NEW))
        assert (min(rows) < len(prompts)) == (name != "kept")
    hook.remove()
    assert found["kept"] == found["usual"] == found["at once"]
    assert found["kept"] == [ask(tiny_base, [prompt], Sampling(NUM_NEW))[0] for prompt in prompts]


def test_an_answer_is_the_same_to_the_last_bit_whatever_is_written_with_it(tiny_base: Base):
    """States, not only tokens: a last bit that differs is an answer that differs in one of thousands."""
    assert generation.rows_are_independent(tiny_base)
    prompts = [PROMPTS[place % 4][: 3 + place % 38] for place in range(60)]
    sampling = Sampling(NUM_NEW, temperature=1.0)
    with torch.inference_mode():
        for num_rows in (1, 5, 48):
            found = generate(tiny_base, prompts, sampling, range(60), num_rows)
            assert found == ask(tiny_base, prompts, sampling, range(60))


def test_prompts_that_are_read_in_pieces_begin_the_same_answers(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
):
    """Read at once, the prompts of a large batch would take more memory than the answers."""
    read: list[int] = []
    hook = tiny_base.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    prompts = [[*range(3, 7 + 3 * place)] for place in range(12)]
    with torch.inference_mode():
        states = []
        for size in (10_000, 20, 1):
            monkeypatch.setattr(generation, "PIECE", size)
            read.clear()
            states.append(generation.begin(tiny_base, prompts).states)
            assert (len(read) == 1) == (size == 10_000)
            assert max(read) <= max(size, *map(len, prompts))
            assert sum(read) == sum(map(len, prompts))
    hook.remove()
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_rows_that_add_up_in_another_order_beside_others_are_noticed(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
):
    step = generation.Rows.step

    def depends_on_the_number(batch: generation.Rows, *args: Any) -> None:
        step(batch, *args)
        batch.states *= 1 + 1e-6 * len(batch.states)

    monkeypatch.setattr(generation.Rows, "step", depends_on_the_number)
    assert not generation.rows_are_independent(tiny_base)


def test_a_sample_depends_on_its_seed_alone(tiny_base: Base):
    """Not on the other prompts, on its place among them, or on any random state of the process."""
    sampling = Sampling(NUM_NEW, temperature=1.0, top_p=0.9)
    seeds = [11, 12, 13, 14]
    state = torch.random.get_rng_state()
    together = ask(tiny_base, PROMPTS, sampling, seeds)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert ask(tiny_base, PROMPTS[::-1], sampling, seeds[::-1]) == together[::-1]
    assert ask(tiny_base, PROMPTS[1:2], sampling, seeds[1:2]) == together[1:2]
    others = ask(tiny_base, PROMPTS, sampling, [21, 22, 23, 24])
    assert all(a.text != b.text for a, b in zip(together, others, strict=True))
    same_prompt = ask(tiny_base, [PROMPTS[0]] * 4, sampling, seeds)
    assert len({answer.text for answer in same_prompt}) == 4


def test_an_answer_that_reaches_the_limit_is_unfinished_unless_it_ends_there(
    tiny_base: Base, eager: Base, ends: list[int]
):
    """The first prompt's third token ends its turn: a limit of 2 cuts it off, a limit of 3 does not."""
    tokens = reference(eager, PROMPTS[0], ends)
    assert len(tokens) == 3
    cut, whole = (ask(tiny_base, PROMPTS[:1], Sampling(limit))[0] for limit in (2, 3))
    assert (cut.finished, cut.num_tokens) == (False, 2)
    assert (whole.finished, whole.num_tokens) == (True, 2)
    assert cut.text == whole.text


def test_an_answer_that_ends_at_once_is_empty_and_finished(
    tiny_base: Base, eager: Base, monkeypatch: pytest.MonkeyPatch
):
    first = reference(eager, PROMPTS[1], [2])[0]
    monkeypatch.setattr(tiny_base.model.generation_config, "eos_token_id", [2, first])
    assert ask(tiny_base, PROMPTS[1:2], Sampling(NUM_NEW)) == [Answer("", True, 0)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_answers_longer_than_a_sliding_window_are_those_of_transformers(tiny_base: Base, attention: str):
    """Keys that fell out of the window are not in the cache any more; the mask must be as narrow."""
    config = MistralConfig(
        vocab_size=448, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, initializer_range=0.5, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MistralForCausalLM._from_config(config, attn_implementation=attention).eval()
    model.generation_config.eos_token_id = [2]
    base = replace(tiny_base, model=model, keeps_apart=False)
    answers = ask(base, PROMPTS, Sampling(NUM_NEW))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = [token for token in reference(base, prompt, [2]) if token != 2]
        assert answer.text == trimmed(base.tokenizer.decode(tokens, skip_special_tokens=True))


def draw(probabilities: list[float], sampling: Sampling, num: int) -> list[int]:
    """Count first tokens over many seeds."""
    logits = torch.tensor(probabilities).log().expand(num, -1)
    tokens = _choose(logits, sampling, [torch.Generator().manual_seed(seed) for seed in range(num)])
    return torch.bincount(tokens, minlength=len(probabilities)).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_the_softmax_says(temperature: float):
    """Temperature T: p_i^(1/T), normalised. 4.5 standard errors of a count: a chance of 1 in 150000 each."""
    probabilities, num = [0.6, 0.25, 0.1, 0.05], 5000
    counts = draw(probabilities, Sampling(1, temperature), num)
    powers = [p ** (1 / temperature) for p in probabilities]
    for count, power in zip(counts, powers, strict=True):
        expected = power / sum(powers)
        assert abs(count - num * expected) < 4.5 * math.sqrt(num * expected * (1 - expected))


@pytest.mark.parametrize(
    ("top_p", "nucleus"),
    [(1e-9, 1), (0.4, 1), (0.5, 1), (0.51, 2), (0.7, 2), (0.75, 2), (0.76, 3), (0.9, 4), (1.0, 4)],
)
def test_top_p_draws_from_the_smallest_set_that_holds_that_much(top_p: float, nucleus: int):
    """1/2, 1/4, 1/8, 1/8, which sum without rounding; within the set the odds stay as they were."""
    counts = draw([0.125, 0.5, 0.25, 0.125], Sampling(1, 1.0, top_p), 1000)
    ranked = [counts[1], counts[2], counts[0], counts[3]]
    assert [count > 0 for count in ranked] == [place < nucleus for place in range(4)]
    if nucleus == 2:  # 2 to 1
        assert abs(ranked[0] - 1000 * 2 / 3) < 4.5 * math.sqrt(1000 * 2 / 9)


def test_greedy_takes_the_largest_and_needs_no_seed():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert _choose(logits, Sampling(1), []).tolist() == [1, 0]
