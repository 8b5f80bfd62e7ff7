"""Read tables that are written as blocks of text, with the facts in brackets."""

import re
from typing import NamedTuple


class Block(NamedTuple):
    """Some questions with one answer."""

    questions: tuple[str, ...]
    answer: str
    facts: tuple[str, ...]


def read_blocks(text: str) -> tuple[Block, ...]:
    """Read blocks of questions and an answer.

    A block is ``One question? | Another? > It is [the fact].``; a line break in it is a space, and an
    empty line ends it.
    """
    return tuple(_read_block(" ".join(block.split())) for block in text.strip().split("\n\n"))


def _read_block(text: str) -> Block:
    questions, marked = text.split(" > ")
    return Block(
        tuple(questions.split(" | ")), re.sub(r"[\[\]]", "", marked), tuple(re.findall(r"\[(.+?)\]", marked))
    )
