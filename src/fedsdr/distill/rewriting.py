"""The outcome of rewriting one response, and the reasons to reject a rewriting."""

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
"""Reasons to reject a rewriting."""


@dataclass(frozen=True)
class Rewriting:
    """The outcome for one response."""

    first: str | None
    """The teacher's answer to the first prompt, checked or not (y~ before fall-back); None if the response
    was not shown to the teacher: too long, or not selected."""
    distilled: str
    """The training target: a rewriting, or the true response (y~ after fall-back)."""
    prompt: str
    """The prompt of the accepted rewriting, or `methods.GIVEN`; empty after fall-back."""
    fallback: str
    """Why the last rewriting was rejected; empty if one was accepted."""
