"""Thinking before an answer is no part of it."""

import pytest

from fedsdr.data.thinking import is_unclosed, without_thinking


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nA place is asked for.\n</think>\n\nOslo lies in Norway.",
        "\n<think></think>Oslo lies in Norway.",
        "<thinking>So.</thinking>\nOslo lies in Norway.",
        "<seed:think>So.</seed:think>Oslo lies in Norway.",
        "[THINK]So.[/THINK]Oslo lies in Norway.",
        "So, a place.\n</think>\n\nOslo lies in Norway.",  # the prompt opened it
        "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>Oslo lies in Norway.",
        "<|channel|>final<|message|>Oslo lies in Norway.",
        "Oslo lies in Norway.",
    ],
)
def test_the_answer_is_what_is_left(text: str):
    assert without_thinking(text) == "Oslo lies in Norway."
    assert not is_unclosed(text)


@pytest.mark.parametrize(
    "text",
    [
        "The tag <think> opens it, and </think> closes it.",
        "In HTML, write <b>think</b>.",
        "I think. Therefore I am.",
        "    return 1",
    ],
)
def test_an_answer_that_speaks_of_thinking_is_left_alone(text: str):
    assert without_thinking(text) == text
    assert not is_unclosed(text)


@pytest.mark.parametrize("text", ["<think>So, a place", "[THINK] Hm", "<|channel|>analysis<|message|>Hm"])
def test_thinking_that_never_ends_is_recognised(text: str):
    assert without_thinking(text) == text
    assert is_unclosed(text)
