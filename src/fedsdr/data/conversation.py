"""An example as a conversation in the model's own chat template, and as tokens.

The loss counts the response only. Its tokens are the templated conversation minus the templated prompt.
Searching for a marker token instead is unsafe (other tools lost their loss that way), because how a marker
is tokenised depends on the text before it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fedsdr.data.examples import Example
from fedsdr.data.template import Turn, escape, render, tokens
from fedsdr.data.thinking import closing, opened
from fedsdr.errors import UserError

LINES_ABOVE = re.compile(r"\A(?:[^\S\n]*\n)+")
SENTINEL = "fedsdr"
"""Stands for a response, to find the template's text before and after it."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A tokenised prompt and response."""

    ids: tuple[int, ...]
    """Token ids of prompt and response, at most `model.max_length` of them."""
    prompt_length: int
    """Number of leading tokens that are prompt."""
    num_cut: int = 0
    """Tokens of the response that `model.max_length` cut off."""
    weights: tuple[float, ...] = ()
    """Weight of each response token in the loss; set for all conversations of a batch or for none. Empty:
    all 1."""

    @property
    def num_response_tokens(self) -> int:
        """Tokens that the loss counts, end of turn included (if it was not cut off)."""
        return len(self.ids) - self.prompt_length

    @property
    def weight(self) -> float:
        """Sum of the weights of the response tokens, by which the sum of their losses is divided."""
        return sum(self.weights) if self.weights else self.num_response_tokens


def prompt_turns(example: Example) -> list[Turn]:
    """The turns that the model answers: system prompt (if any), earlier turns, instruction with context."""
    user = f"{example.instruction}\n\n{example.context}" if example.context else example.instruction
    system = [{"role": "system", "content": example.system}] if example.system else []
    earlier = [
        {"role": role, "content": text}
        for exchange in example.history
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    ]
    return [*system, *earlier, {"role": "user", "content": user}]


def encode_prompt(tokenizer: Any, turns: list[Turn]) -> list[int]:
    """Token ids of the turns, up to where the model's answer begins."""
    return tokens(tokenizer, render(tokenizer, turns, asks=True))


def encode(tokenizer: Any, example: Example, response: str, max_length: int) -> Conversation:
    """Tokenise an example with a response, either the true one or a rewriting.

    Tokens beyond `max_length` are cut off the end of the response. The end of turn is cut off too, so that a
    truncated text is not learned as a complete one.

    Raises:
        UserError: The prompt is not a prefix of the conversation, or leaves no room for a response.
    """
    turns = prompt_turns(example)
    before = render(tokenizer, turns, asks=True)
    prompt = tokens(tokenizer, before)
    text = answered(tokenizer, turns, before, trimmed(response))
    ids = tokens(tokenizer, text)
    if ids[: len(prompt)] != prompt and text.startswith(before):
        # Leading blanks of a response may merge with the preceding line break into one token. At generation
        # time the prompt ends before that line break, and the model continues from there.
        ids = prompt + tokens(tokenizer, text.removeprefix(before))
    if ids[: len(prompt)] != prompt:
        raise UserError(
            "the chat template's prompt is not a prefix of its conversation, so it does not separate"
            f" prompt and response ({tokenizer.name_or_path}); use a model whose template leaves"
            " the prompt unchanged when the answer follows"
        )
    if len(prompt) >= max_length:
        raise UserError(
            f"a prompt of {example.domain} has {len(prompt)} tokens, which leaves no room for a response in"
            f" model.max_length = {max_length}; raise it or shorten the prompt"
        )
    return Conversation(tuple(ids[:max_length]), len(prompt), max(0, len(ids) - max_length))


def encode_all(
    tokenizer: Any, examples: Sequence[Example], max_length: int, responses: Sequence[str] | None = None
) -> list[Conversation]:
    """Tokenise examples, each with its response from `responses`; None: with the true ones."""
    texts = [example.response for example in examples] if responses is None else responses
    pairs = zip(examples, texts, strict=True)
    return [encode(tokenizer, example, text, max_length) for example, text in pairs]


def count_cut(conversations: Iterable[Conversation]) -> int:
    """Number of conversations whose response is cut at `model.max_length`."""
    return sum(conversation.num_cut > 0 for conversation in conversations)


def trimmed(response: str) -> str:
    """The response as it is trained on: without blank lines around it or a single leading blank.

    A single leading blank comes from templates and tokenizers. More blanks, or a tab, are indentation and
    stay.
    """
    text = LINES_ABOVE.sub("", response).rstrip()
    return text[1:] if text.startswith(" ") and not text[1].isspace() else text


def answered(tokenizer: Any, turns: list[Turn], before: str, response: str) -> str:
    """Text of the turns and the response.

    Templates that strip the response would remove the indentation of a function's body, so it is restored.
    If the prompt opens a thinking block, the block is closed at once and the response follows it.
    """
    text = render(tokenizer, [*turns, {"role": "assistant", "content": response}])
    response = escape(tokenizer, response)
    is_stripped = response[:1].isspace() and response not in text
    tag = "" if text.startswith(before) else opened(before)
    if not (is_stripped or tag):
        return text
    # A short response may occur in the template's own text, as "d" does in "<|im_end|>".
    whole = render(tokenizer, [*turns, {"role": "assistant", "content": SENTINEL}])
    head, _, tail = whole.rpartition(SENTINEL)
    return f"{before}{closing(tag)}{response}{tail}" if tag else f"{head}{response}{tail}"
