"""A second check of a rewriting: asked which label it says, the base model must find the true one likeliest.

It catches what the exact check reads wrongly, and errs as the model does: one that is biased to a label keeps
the rewritings of that label alone, which is why the share kept is counted by label.
"""

from collections.abc import Sequence
from dataclasses import replace

from fedsdr.data.examples import Example
from fedsdr.data.truth.labels import fold_label
from fedsdr.model.adapters import LoraModel
from fedsdr.model.likelihood import likeliest

QUESTION = "Which one of these labels does the answer give: {choices}? Reply with the label only."


def express_label(
    model: LoraModel, examples: Sequence[Example], texts: Sequence[str], batch_size: int
) -> list[bool]:
    """Whether the true label is the likeliest choice, given instruction, context and rewriting.

    True where an example has no label or no choices.
    """
    rows = [row for row, example in enumerate(examples) if example.label and example.choices]
    asked = [_question(examples[row], texts[row]) for row in rows]
    with model.inference(()):
        found = dict(zip(rows, likeliest(model.base, asked, batch_size), strict=True))
    return [
        row not in found or fold_label(found[row]) == fold_label(example.label)
        for row, example in enumerate(examples)
    ]


def _question(example: Example, text: str) -> Example:
    parts = [
        example.instruction,
        example.context,
        f"Answer: {text}",
        QUESTION.format(choices=", ".join(example.choices)),
    ]
    return replace(example, instruction="\n\n".join(part for part in parts if part), context="")
