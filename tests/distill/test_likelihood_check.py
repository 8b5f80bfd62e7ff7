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


def test_a_rewriting_must_raise_the_true_label_most_whatever_the_model_prefers_without_it(
    monkeypatch: pytest.MonkeyPatch,
):
    """A model that finds "positive" likeliest always: by 4 nats of nothing, by 1.5 where prices fall.

    The fall raises "negative" by 2 and lowers "positive" by 0.5. A gain raises "positive" by 0.5 alone.
    """
    nats = {"Prices fall.": [-3.0, -1.5], "Prices gain.": [-5.0, -0.5], "": [-5.0, -1.0]}
    asked: list[str] = []

    def choice_likelihoods(base: Any, examples: list[Example], batch_size: int) -> list[list[float]]:
        assert all(example.choices == CHOICES for example in examples)
        asked.extend(example.instruction for example in examples)
        return [nats[e.instruction.split("Answer: ")[1].split("\n")[0]] for e in examples]

    monkeypatch.setattr(likelihood_check, "choice_likelihoods", choice_likelihoods)
    cases = {
        ("Prices fall.", "negative"): True,
        ("Prices fall.", "positive"): False,
        ("Prices gain.", "positive"): True,
        ("Prices gain.", "NEGATIVE"): False,
    }
    examples = [labelled(label) for _, label in cases]
    found = express_label(NoModel(), examples, [text for text, _ in cases], 4)  # type: ignore[arg-type]
    assert dict(zip(cases, found, strict=True)) == cases
    assert all("Sentiment?" in prompt and "negative, positive" in prompt for prompt in asked)


def test_examples_without_labels_or_choices_pass(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(likelihood_check, "choice_likelihoods", lambda base, examples, size: [])
    examples = [Example("q", "r", "x"), Example("q", "yes", "x", label="yes")]
    assert express_label(NoModel(), examples, ["a", "b"], 4) == [True, True]  # type: ignore[arg-type]
