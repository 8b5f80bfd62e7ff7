"""Thinking: text that some models write before their answer, and that is not part of it.

It comes first, between two tags. A prompt may have opened it (`<think>` at its end); then the text contains
only the closing tag.
"""

import re

_NAME = r"(?:think|thinking|thought|reasoning|seed:think)"
_OPENING = rf"<{_NAME}>|\[THINK\]|<\|channel\|>analysis<\|message\|>"
_CLOSING = rf"</{_NAME}>|\[/THINK\]|<\|end\|>(?:<\|start\|>assistant)?"
_OPENED = re.compile(rf"(?:{_OPENING})\s*\Z")
_BEGINS = re.compile(rf"\s*(?:{_OPENING})")
_LEADING = re.compile(rf"\s*(?:{_OPENING}).*?(?:{_CLOSING})", re.DOTALL)
_OPENED_BEFORE = re.compile(rf"(?:(?!{_OPENING}).)*?</{_NAME}>(?=\s*\n|\s*\Z)", re.DOTALL)
_HEADER = re.compile(r"\s*(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>")
"""What gpt-oss writes before an answer."""
TAGS = re.compile(rf"</?{_NAME}>|\[/?THINK\]")


def without_thinking(text: str) -> str:
    """The answer alone; unclosed thinking stays, and `is_unclosed` recognises it."""
    found = _LEADING.match(text) or _OPENED_BEFORE.match(text)
    rest = text[found.end() :] if found else text
    header = _HEADER.match(rest)
    rest = rest[header.end() :] if header else rest
    return rest if rest == text else rest.lstrip("\n \t\r")


def is_unclosed(text: str) -> bool:
    """Whether the text begins with thinking that never ends, so there is no answer."""
    return bool(_BEGINS.match(text) and not _LEADING.match(text))


def opened(prompt: str) -> str:
    """The tag, blanks included, by which a prompt opens thinking at its end; "" if it does not."""
    found = _OPENED.search(prompt)
    return found.group() if found else ""


def closing(tag: str) -> str:
    """The text that closes thinking opened by this tag, with the blank line after it."""
    name = tag.strip()
    return f"\n{name.replace('<', '</').replace('[', '[/')}\n\n"
