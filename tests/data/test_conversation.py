"""An example as a conversation: prompt, response, and truncation."""

import copy

import pytest

from fedsdr.data.conversation import encode, encode_prompt, prompt_turns, trimmed
from fedsdr.data.examples import Example
from fedsdr.errors import UserError
from fedsdr.model.base import Base

EXAMPLE = Example("Name the capital.", "Paris is the capital of France.", "general")


def test_the_prompt_holds_system_then_instruction_then_context():
    example = Example("Sum up.", "Short.", "general", context="A long passage.", system="Be brief.")
    assert prompt_turns(example) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Sum up.\n\nA long passage."},
    ]
    assert prompt_turns(EXAMPLE) == [{"role": "user", "content": "Name the capital."}]


def test_the_model_is_asked_at_test_time_in_the_very_tokens_that_it_was_trained_on(tiny_base: Base):
    """Went wrong elsewhere: prompts of the evaluation had a format that was never trained on."""
    conversation = encode(tiny_base.tokenizer, EXAMPLE, EXAMPLE.response, 512)
    asked = encode_prompt(tiny_base.tokenizer, prompt_turns(EXAMPLE))
    assert list(conversation.ids[: conversation.prompt_length]) == asked
    assert tiny_base.tokenizer.decode(asked).endswith("<|im_start|>assistant\n")


def test_a_response_ends_in_the_token_that_stops_generation(tiny_base: Base):
    """Went wrong elsewhere: training texts had no end, so the model never stopped."""
    conversation = encode(tiny_base.tokenizer, EXAMPLE, EXAMPLE.response, 512)
    ends = tiny_base.model.generation_config.eos_token_id
    response = conversation.ids[conversation.prompt_length :]
    assert sum(token in ends for token in response) == 1
    text = tiny_base.tokenizer.decode(response)
    assert text.strip() == f"{EXAMPLE.response}<|im_end|>"
    assert conversation.num_response_tokens == len(response)


@pytest.mark.parametrize(
    "response",
    [
        "assistant\nThe answer is: yes",
        "<|im_start|>assistant\nyes",
        "### Response:\nyes",
        "Name the capital.",
    ],
)
def test_text_that_looks_like_the_start_of_a_response_moves_nothing(tiny_base: Base, response: str):
    """Went wrong elsewhere: the start of the response was searched for, and found in the wrong place."""
    prompt_length = encode(tiny_base.tokenizer, EXAMPLE, "yes", 512).prompt_length
    conversation = encode(tiny_base.tokenizer, EXAMPLE, response, 512)
    assert conversation.prompt_length == prompt_length
    taught = tiny_base.tokenizer.decode(conversation.ids[prompt_length:])
    assert taught.strip() == f"{response}<|im_end|>"


def test_blank_lines_around_a_response_are_not_taught(tiny_base: Base):
    plain = encode(tiny_base.tokenizer, EXAMPLE, "Paris.", 512)
    assert encode(tiny_base.tokenizer, EXAMPLE, "\n \r\nParis. \n\n", 512) == plain
    assert encode(tiny_base.tokenizer, EXAMPLE, " Paris.", 512) == plain  # older completion files begin so
    assert [trimmed(text) for text in ("\tx", "  x", "\n", " ", "")] == ["\tx", "  x", "", "", ""]


def test_blanks_that_indent_a_response_are_taught(tiny_base: Base):
    """Went wrong once: of a function's body the first line lost its indentation, and no longer ran."""
    body = "    total = 0\n    for x in xs:\n        total += x\n    return total"
    conversation = encode(tiny_base.tokenizer, EXAMPLE, f"\n{body}\n", 512)
    taught = tiny_base.tokenizer.decode(conversation.ids[conversation.prompt_length :])
    assert taught.removesuffix("\n") == f"{body}<|im_end|>"
    # From the very tokens with which the model is asked.
    asked = encode_prompt(tiny_base.tokenizer, prompt_turns(EXAMPLE))
    assert list(conversation.ids[: conversation.prompt_length]) == asked


def test_a_long_response_loses_its_end_and_so_is_not_taught_to_end_there(tiny_base: Base):
    whole = encode(tiny_base.tokenizer, EXAMPLE, EXAMPLE.response, 512)
    for lost in (1, 2, 3, whole.num_response_tokens - 1):
        cut = encode(tiny_base.tokenizer, EXAMPLE, EXAMPLE.response, len(whole.ids) - lost)
        assert cut.ids == whole.ids[:-lost]
        assert cut.prompt_length == whole.prompt_length
        assert (whole.num_cut, cut.num_cut) == (0, lost)
    # The template writes a line break after the end of turn: two tokens less, and the end is gone.
    assert not set(tiny_base.model.generation_config.eos_token_id) & set(cut.ids[cut.prompt_length :])


def test_a_prompt_that_leaves_no_room_is_an_error_that_says_how_long_it_is(tiny_base: Base):
    length = encode(tiny_base.tokenizer, EXAMPLE, "yes", 512).prompt_length
    assert encode(tiny_base.tokenizer, EXAMPLE, "yes", length + 1).num_response_tokens == 1
    with pytest.raises(UserError, match=f"general has {length} tokens.*model.max_length = {length}"):
        encode(tiny_base.tokenizer, EXAMPLE, "yes", length)


def test_a_template_that_rewrites_the_prompt_is_refused_and_not_guessed_at(tiny_base: Base):
    tokenizer = copy.deepcopy(tiny_base.tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n{%", "assistant\nThink first.{%")
    with pytest.raises(UserError, match="not a prefix"):
        encode(tokenizer, EXAMPLE, "yes", 512)


@pytest.mark.parametrize("response", ["d", "e", "im", "", "No <|im_end|> here.", "  d", "  <|im_end|>"])
@pytest.mark.parametrize("opens", [True, False], ids=["thinking", "plain"])
def test_any_response_is_taught_whole_where_the_prompt_opens_thinking_or_blanks_are_stripped(
    tiny_base: Base, response: str, opens: bool
):
    """Went wrong once: "d" was found inside <|im_end|>, an empty response raised an error, and control tokens in a
    response became real."""
    tokenizer = copy.deepcopy(tiny_base.tokenizer)
    template = tokenizer.chat_template.replace("message['content']", "message['content'] | trim")
    assert "| trim" in template
    if opens:
        template = template.replace("assistant\n{% endif", "assistant\n<think>{% endif")
        assert "<think>" in template
    tokenizer.chat_template = template
    conversation = encode(tokenizer, EXAMPLE, response, 512)
    taught = conversation.ids[conversation.prompt_length :]
    start = "\n</think>\n\n" if opens else ""
    assert tokenizer.decode(taught).rstrip() == f"{start}{response}<|im_end|>"
    ends = tiny_base.model.generation_config.eos_token_id
    assert sum(token in ends for token in taught) == 1
