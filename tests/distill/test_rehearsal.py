"""Synthetic conversations of the base."""

from collections.abc import Callable

import pytest

from fedsdr.config import Lora, Settings
from fedsdr.data.conversation import encode_prompt
from fedsdr.distill import rehearsal
from fedsdr.distill.rehearsal import LENGTH, base_answers, synthetic_conversations, synthetic_prompts
from fedsdr.errors import UserError
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base
from fedsdr.model.generation import Answer


@pytest.fixture
def model(tiny_settings: Callable[..., Settings]) -> LoraModel:
    model = LoraModel(load_base(tiny_settings().model), Lora(rank=2))
    model.initialise("shared", seed=0)
    return model


def written(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """The base writes these texts, in turn."""
    given = iter(texts)
    monkeypatch.setattr(
        rehearsal, "generate", lambda base, ids, *rest: [Answer(next(given), True, 3) for _ in ids]
    )


def test_each_conversation_is_a_synthetic_prompt_with_the_bases_answer(model):
    """None of its tokens counts in a loss."""
    found = synthetic_conversations(model, seed=0, num=3)
    prompts = [prompt for prompt in synthetic_prompts(model, 3, seed=0) if prompt]
    assert prompts and len(found) == len(prompts)
    for conversation, prompt in zip(found, prompts, strict=True):
        turns = encode_prompt(model.base.tokenizer, [{"role": "user", "content": prompt}])
        assert conversation.ids[: conversation.prompt_length] == tuple(turns)
        assert conversation.weights == (0.0,) * conversation.num_response_tokens
    assert [one.ids for one in base_answers(model, prompts, 3, LENGTH)] == [one.ids for one in found]


def test_a_truncated_answer_has_the_given_length_and_no_end_of_turn(model):
    (found,) = base_answers(model, ["Name a colour."], 1, 5)
    (longer,) = base_answers(model, ["Name a colour."], 1, 9)
    assert 0 < found.num_response_tokens <= 5
    assert found.ids == longer.ids[: len(found.ids)]


def test_prompts_follow_from_the_seed_and_the_base_alone(model):
    before = synthetic_prompts(model, 3, seed=0)
    for value in model.tensors("shared").values():
        value.data.add_(1.0)
    assert synthetic_prompts(model, 3, seed=0) == before
    assert synthetic_prompts(model, 3, seed=1) != before
    assert len(set(before)) > 1
    assert synthetic_prompts(model, 1, seed=0) == before[:1]


def test_an_empty_prompt_and_an_answer_that_is_still_thinking_are_left_out(model, monkeypatch):
    """Thinking that was cut off is no answer."""
    written(monkeypatch, "One?", " ", "Two?", "<think> Hmm", "2")
    (found,) = synthetic_conversations(model, seed=0, num=3)
    turns = encode_prompt(model.base.tokenizer, [{"role": "user", "content": "Two?"}])
    assert found.ids[: found.prompt_length] == tuple(turns)


def test_a_model_that_writes_nothing_is_refused(model, monkeypatch):
    """Without conversations the run would train plainly, and be called rehearsal."""
    written(monkeypatch, "", "")
    with pytest.raises(UserError, match=r"no prompts and answers of its own.*client\.drift_correction"):
        synthetic_conversations(model, seed=0, num=2)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}",
        "{% for m in messages %}<user>{{ m['content'] | length }}\n{% endfor %}",
    ],
    ids=["no text before the user", "the user's words are altered"],
)
def test_a_template_that_opens_no_user_turn_is_refused(model, monkeypatch, template: str):
    monkeypatch.setattr(model.base.tokenizer, "chat_template", template)
    with pytest.raises(UserError, match=r"no text before a user's words.*set client\.drift_correction"):
        synthetic_prompts(model, 1, seed=0)


def test_a_prompt_ends_where_its_template_closes_the_turn(model, monkeypatch):
    """Mistral's turns end by text, after which the base continues with an answer."""
    template = "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
    monkeypatch.setattr(model.base.tokenizer, "chat_template", template)
    written(monkeypatch, "Name a colour. [/INST] Red.")
    assert synthetic_prompts(model, 1, seed=0) == ["Name a colour."]
