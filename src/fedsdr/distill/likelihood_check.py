"""A second check of a rewriting: it must make the true label more likely relative to every other choice.

The check compares the likelihood of each choice with and without the rewriting. A small model's prior
preference for one label is part of both and cancels out. What remains of that preference shows in the share
of rewritings accepted for each label.

After Holtzman et al. 2021 (domain-conditional pointwise mutual information) and Zhao et al. 2021 (calibration
by an empty input).
"""

from collections.abc import Sequence
from dataclasses import replace

from fedsdr.data.examples import Example
from fedsdr.data.truth.labels import fold_label
from fedsdr.model.adapters import LoraModel
from fedsdr.model.likelihood import choice_likelihoods

QUESTION = "Which one of these labels does the answer give: {choices}? Reply with the label only."


def express_label(
    model: LoraModel, examples: Sequence[Example], texts: Sequence[str], batch_size: int
) -> list[bool]:
    """Whether the rewriting raises log p of the true label by more than that of any other choice.

    For choice c, prompt x and rewriting y~: log p(c | x, y~) - log p(c | x, empty y~), in nats. True for an
    example without a label or choices.
    """
    rows = [row for row, example in enumerate(examples) if example.label and example.choices]
    asked = [_question(examples[row], texts[row]) for row in rows]
    empty = [_question(examples[row], "") for row in rows]
    with model.inference(()):
        values = zip(
            *(choice_likelihoods(model.base, some, batch_size) for some in (asked, empty)), strict=True
        )
    verdicts = [True] * len(examples)
    for row, (given, before) in zip(rows, values, strict=True):
        raised = [after - prior for after, prior in zip(given, before, strict=True)]
        favoured = examples[row].choices[raised.index(max(raised))]
        verdicts[row] = fold_label(favoured) == fold_label(examples[row].label)
    return verdicts


def _question(example: Example, text: str) -> Example:
    parts = [
        example.instruction,
        example.context,
        f"Answer: {text}",
        QUESTION.format(choices=", ".join(example.choices)),
    ]
    return replace(example, instruction="\n\n".join(part for part in parts if part), context="")
