"""The chat template: turns become text, and text becomes tokens.

The template comes with the model and is somebody's program: what it refuses, and a loop without end, are
errors in words. Control tokens that stand in somebody's text stay text; only those are tokens that the
template itself writes.
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
"""Seconds in which a template must be done with one conversation."""


def render(tokenizer: Any, turns: list[Turn], asks: bool = False) -> str:
    """Text of a conversation; control tokens within the turns are marked, as `tokens` understands it.

    Args:
        tokenizer: With its chat template.
        turns: Of the system, if there is one, the user and the assistant.
        asks: Whether the text ends where the next answer begins.

    Raises:
        UserError: The template refuses the turns, fails, or does not end.
    """
    from transformers.utils.chat_template_utils import mark_control_tokens

    marked = mark_control_tokens(turns, _control_tokens(tokenizer, tokenizer.chat_template))

    def work() -> str:
        text: str = tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=asks)
        return text

    found = _in_time(work)
    if isinstance(found, str):
        return found
    roles = ", ".join(turn["role"] for turn in turns)
    why = (
        f"{type(found).__name__}: {found}"
        if found is not None
        else f"it is not done after {PATIENCE:g} seconds"
    )
    raise UserError(
        f"the chat template of {tokenizer.name_or_path} cannot write a conversation of {roles}: {why}"
    )


def tokens(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text by `render`. No token is added to those that the template writes."""
    found = tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True)
    return list(found["input_ids"])


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: Any, template: str) -> re.Pattern[str]:
    """What must not become a control token: all special tokens, and the added ones that the template writes.

    Tags of thinking that are no special tokens are not among them: a response may think.
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
    """What `work` returns or raises, or None where it is not done in time; then it is stopped."""
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
    # Nothing else ends a thread; this ends a loop of a template, which is Python's.
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
    )
    return None
