"""Conversations that the base makes up by itself."""

from collections.abc import Callable

import pytest

from fedsdr.config import Lora, Settings
from fedsdr.data.conversation import encode_prompt
from fedsdr.distill.rehearsal import LONGEST_ANSWER, base_answers, make_up_prompts, rehearsal
from fedsdr.errors import UserError
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base


@pytest.fixture
def model(tiny_settings: Callable[..., Settings]) -> LoraModel:
    model = LoraModel(load_base(tiny_settings().model), Lora(rank=2))
    model.initialise("shared", seed=0)
    return model


def test_each_conversation_is_a_made_up_prompt_with_the_bases_answer(model):
    """None of its tokens counts in a loss."""
    found = rehearsal(model, seed=0, num=3)
    prompts = [prompt for prompt in make_up_prompts(model, 3, seed=0) if prompt]
    assert prompts and len(found) == len(prompts)
    for conversation, prompt in zip(found, prompts, strict=True):
        turns = encode_prompt(model.base.tokenizer, [{"role": "user", "content": prompt}])
        assert conversation.ids[: conversation.prompt_length] == tuple(turns)
        assert 0 < conversation.num_response_tokens <= LONGEST_ANSWER + 1
        assert conversation.weights == (0.0,) * conversation.num_response_tokens
    assert [one.ids for one in base_answers(model, prompts, 3)] == [one.ids for one in found]


def test_prompts_follow_from_the_seed_and_the_base_alone(model):
    before = make_up_prompts(model, 3, seed=0)
    for value in model.tensors("shared").values():
        value.data.add_(1.0)
    assert make_up_prompts(model, 3, seed=0) == before
    assert make_up_prompts(model, 3, seed=1) != before
    assert len(set(before)) > 1
    assert make_up_prompts(model, 1, seed=0) == before[:1]


def test_a_template_without_text_before_the_user_is_refused(model, monkeypatch: pytest.MonkeyPatch):
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    monkeypatch.setattr(model.base.tokenizer, "chat_template", template)
    with pytest.raises(UserError, match=r"no text before a user's words.*set client\.drift_correction"):
        make_up_prompts(model, 1, seed=0)
