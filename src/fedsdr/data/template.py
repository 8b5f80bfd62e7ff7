"""The chat template: turns become text, and text becomes tokens.

The template is a program that comes with the model. If it rejects the turns, fails or does not end, the user
sees a clear error. Control tokens inside user text remain plain text; only the template itself can write
control tokens.
"""

import ctypes
import re
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fedsdr.data.thinking import TAGS
from fedsdr.errors import UserError

Turn = dict[str, str]
PATIENCE = 5.0
"""Time limit in seconds for rendering one conversation."""


def render(tokenizer: Any, turns: list[Turn], asks: bool = False) -> str:
    """Text of a conversation; control tokens within the turns are escaped for `tokens`.

    Args:
        tokenizer: A tokenizer with a chat template.
        turns: Turns of the system (optional), the user and the assistant.
        asks: Whether the text ends where the next answer begins.

    Raises:
        UserError: The template refuses the turns, fails, or does not end.
    """
    escaped = [{key: escape(tokenizer, text) for key, text in turn.items()} for turn in turns]

    def work() -> str:
        text: str = tokenizer.apply_chat_template(escaped, tokenize=False, add_generation_prompt=asks)
        return text

    found = _in_time(work)
    if isinstance(found, str):
        return found
    roles = ", ".join(turn["role"] for turn in turns)
    why = (
        f"{type(found).__name__}: {found}"
        if found is not None
        else f"it did not finish within {PATIENCE:g} seconds"
    )
    raise UserError(
        f"the chat template of {tokenizer.name_or_path} cannot write a conversation of {roles}: {why}"
    )


def escape(tokenizer: Any, text: str) -> str:
    """The text with its control tokens escaped for `tokens`."""
    from transformers.utils.chat_template_utils import mark_control_tokens

    marked: str = mark_control_tokens(text, _control_tokens(tokenizer, tokenizer.chat_template))
    return marked


def tokens(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text from `render`; no tokens are added beyond the template's own."""
    found = tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True)
    return list(found["input_ids"])


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: Any, template: str) -> re.Pattern[str]:
    """Text that must not become a control token: special tokens, and added tokens used by the template.

    Thinking tags that are not special tokens are excluded: a response may contain thinking.
    """
    found = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special
        or (token.content in template and not token.content.isspace() and not TAGS.fullmatch(token.content))
    ]
    longest_first = sorted(found, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _in_time(work: Callable[[], str]) -> str | Exception | None:
    """What `work` returns or raises; None if it exceeds the time limit and is stopped."""
    found: list[str | Exception] = []

    def run() -> None:
        try:
            found.append(work())
        except SystemExit:  # it was stopped
            return
        except Exception as error:  # of any kind: a template is a program
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if found:
        return found[0]
    # A thread cannot be killed; raising in it ends an endless loop, since templates run as Python.
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
    )
    return None
