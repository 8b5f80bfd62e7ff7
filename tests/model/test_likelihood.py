"""Answers that share the reading of their prompt are as likely as each alone."""

from collections.abc import Callable

import pytest
import torch

from fedsdr.config import Settings
from fedsdr.data.conversation import Conversation
from fedsdr.model.base import Base, load_base
from fedsdr.model.likelihood import log_likelihoods, scored_answers
from fedsdr.model.loss import response_loss

QUESTIONS = [
    ((5, 6, 7), [(8, 2), (8, 9, 10, 2), (30,)]),
    (tuple(range(40, 90)), [(3, 2), (4, 2)]),
    ((11,), [(12, 13, 2)]),
]


@pytest.mark.parametrize("attention", ["grouped", "packed", "eager", "sdpa"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_each_answer_is_as_likely_as_alone(tiny_settings: Callable[..., Settings], attention, batch_size):
    """Alone, -log p of the answer is the loss of its conversation; the first two answers begin alike."""
    base: Base = load_base(tiny_settings(**{"model.attention": attention}).model)
    with torch.inference_mode():
        found = log_likelihoods(base, QUESTIONS, batch_size)
        alone = [
            [
                -response_loss(base, [Conversation((*prompt, *answer), len(prompt))])[0].item()
                for answer in answers
            ]
            for prompt, answers in QUESTIONS
        ]
    assert [len(values) for values in found] == [3, 2, 1]
    for values, expected in zip(found, alone, strict=True):
        assert values == pytest.approx(expected, rel=1e-5)


def test_the_greedy_answer_is_recognised_and_one_other_token_makes_it_another(tiny_base: Base):
    prompt = [5, 6, 7]
    with torch.inference_mode():
        for _ in range(3):
            logits = tiny_base.model(torch.tensor([prompt])).logits[0, -1]
            prompt.append(int(logits.argmax()))
        greedy = prompt[3:]
        other = [*greedy[:-1], (greedy[-1] + 1) % 50]
        ((first, second),) = scored_answers(tiny_base, [(prompt[:3], [greedy, other])], 1)
    assert (first[1], second[1]) == (True, False)


def test_a_prompt_is_read_once_whatever_the_number_of_answers(tiny_base: Base):
    """50 tokens of prompt and 40 answers of one token: one row of 96 and not 40 of 64."""
    read: list[int] = []
    hook = tiny_base.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    with torch.inference_mode():
        log_likelihoods(tiny_base, [(tuple(range(50)), [(token,) for token in range(40)])], 8)
    hook.remove()
    assert read == [96]
