"""The second check of a rewriting: the base model's likeliest label, asked what the rewriting says."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from fedsdr.data.examples import Example
from fedsdr.distill import likelihood_check
from fedsdr.distill.likelihood_check import express_label

CHOICES = ("negative", "positive")


def labelled(label: str) -> Example:
    return Example("Sentiment?", label, "finance", label=label, choices=CHOICES)


class NoModel:
    base = None

    def inference(self, active: tuple[str, ...]) -> AbstractContextManager[None]:
        assert active == ()  # the base model alone
        return nullcontext()


def test_the_true_label_must_be_the_likeliest_and_examples_without_labels_pass(
    monkeypatch: pytest.MonkeyPatch,
):
    """A model that reads "positive" unless prices fall: of "It is so." it keeps the positive one alone."""
    asked: list[Example] = []

    def likeliest(base: Any, examples: list[Example], batch_size: int) -> list[str]:
        asked.extend(examples)
        return ["negative" if "fall" in example.instruction else "positive" for example in examples]

    monkeypatch.setattr(likelihood_check, "likeliest", likeliest)
    examples = [labelled("positive"), labelled("negative"), labelled("negative"), Example("q", "r", "x")]
    texts = ["It is so.", "Prices fall.", "It is so.", "anything"]
    assert express_label(NoModel(), examples, texts, 4) == [True, True, False, True]  # type: ignore[arg-type]
    assert len(asked) == 3
    assert "Answer: It is so." in asked[0].instruction and "negative, positive" in asked[0].instruction
