"""Invariant 12: the loss counts response tokens only, end of turn included; a prompt that is no prefix is an error."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fedsdr
from fedsdr.data.batching import collate
from fedsdr.data.conversation import Conversation, encode
from fedsdr.data.examples import Example
from fedsdr.model.base import Base
from fedsdr.model.loss import response_loss
from fedsdr.model.tiny import CHAT_TEMPLATE

EXAMPLES = [
    Example("What is the capital of France?", "Paris.", "general"),
    Example("How many apples are left?", "24 minus 15 is 9. The answer is 9.", "math", context="Tom has 24."),
    Example("Say it in one word.", "The answer is positive.", "finance", system="You label news."),
]


def encoded(base: Base, example: Example) -> Conversation:
    return encode(base.tokenizer, example, example.response, 128)


def test_loss_equals_that_of_transformers_with_the_prompt_masked(tiny_base: Base) -> None:
    conversations = [encoded(tiny_base, example) for example in EXAMPLES]
    batch = collate(conversations)
    labels = torch.full(batch.ids.shape, -100)
    for row, conversation in enumerate(conversations):
        response = slice(conversation.prompt_length, len(conversation.ids))
        labels[row, response] = torch.tensor(conversation.ids[response])
    ours, num_tokens = response_loss(tiny_base, conversations)
    theirs = tiny_base.model(torch.from_numpy(batch.ids), labels=labels).loss
    assert num_tokens == (labels != -100).sum()
    torch.testing.assert_close(ours / num_tokens, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("example", EXAMPLES)
def test_targets_are_the_response_and_the_end_of_turn(tiny_base: Base, example: Example) -> None:
    batch = collate([encoded(tiny_base, example)])
    assert tiny_base.tokenizer.decode(batch.targets) == f"{example.response}<|im_end|>\n"


def test_prompt_tokens_are_no_targets(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hidden states held fixed, a token matters to the loss only as a target."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 128, 64, generator=generator)

    def decoder(input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=hidden[:, : input_ids.shape[1]])

    def loss_with(place: int, ids: tuple[int, ...], prompt_length: int) -> float:
        changed = (*ids[:place], 7 if ids[place] != 7 else 8, *ids[place + 1 :])
        return response_loss(tiny_base, [Conversation(changed, prompt_length)])[0].item()

    monkeypatch.setattr(tiny_base.model, "get_decoder", lambda: decoder)
    conversation = encoded(tiny_base, EXAMPLES[1])
    ids, length = conversation.ids, conversation.prompt_length
    loss = response_loss(tiny_base, [conversation])[0].item()
    assert all(loss_with(place, ids, length) == loss for place in range(length))
    assert all(loss_with(place, ids, length) != loss for place in range(length, len(ids)))


def test_prompt_that_is_no_prefix_is_an_error(tiny_base: Base) -> None:
    tokenizer = copy.deepcopy(tiny_base.tokenizer)
    for template in (
        CHAT_TEMPLATE.replace("assistant\n{% endif", "assistant\nThink first.\n{% endif"),
        CHAT_TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'] }}{{ messages | length }}"),
    ):
        assert template != CHAT_TEMPLATE
        tokenizer.chat_template = template
        with pytest.raises(fedsdr.UserError, match="not a prefix of its conversation"):
            encode(tokenizer, EXAMPLES[0], EXAMPLES[0].response, 128)
