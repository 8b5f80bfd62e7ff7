"""What became of a response, and the reasons why a rewriting is not taught."""

from dataclasses import dataclass

FAULTS = (
    "too long",
    "empty",
    "unclosed thinking",
    "cut off",
    "refusal",
    "self-reference",
    "lost label",
    "lost answer",
    "lost facts",
    "lost tests",
    "unlikely label",
    "not likelier",
    "not chosen",
)
"""Why a rewriting is not taught."""


@dataclass(frozen=True)
class Rewriting:
    """What became of one response."""

    first: str | None
    """What the teacher wrote for the first prompt, checks or not (y~ before fall-back); None where the
    true response was not shown to it: too long, or not chosen."""
    distilled: str
    """What is trained on: a rewriting, or the true response (y~ after fall-back)."""
    prompt: str
    """The prompt whose rewriting is taken, or `methods.GIVEN`; empty when it fell back."""
    fallback: str
    """Why the last rewriting was not taken; empty when one was."""
