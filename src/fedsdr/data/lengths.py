"""How `model.max_length` affects the examples: prompts that leave no room, and truncated responses.

Input: domains and the model's tokenizer. Output: the domains without unusable examples, with counts of the
removed and the truncated ones. If the cut removes the label, answer, facts or tests of a response, the
example is left out of training: the rest would teach the model to stop before the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from sys import maxsize
from typing import Any

from fedsdr.data.checks import lost
from fedsdr.data.conversation import encode
from fedsdr.data.examples import Example
from fedsdr.data.files import BadRow, refuse_bad
from fedsdr.data.readers import Record
from fedsdr.data.sources import Domain
from fedsdr.errors import UserError

TOO_LONG = "prompt longer than model.max_length"
ANSWER_CUT = "ground truth beyond the cut at model.max_length"


@dataclass(frozen=True)
class Length:
    """Tokens of one example."""

    record: Record
    prompt: int
    """Tokens of the prompt."""
    response: int
    """Tokens of the whole response, end of turn included."""
    is_cut: bool
    """Whether the response is truncated, but not to nothing."""
    loses_truth: bool
    """Whether the cut removes its label, answer, facts or tests."""


def fit(
    domains: dict[str, Domain], tokenizer: Any, max_length: int, skips_long: bool = False
) -> dict[str, Domain]:
    """Leave out unusable examples, and count them in `Domain.left_out` and `Domain.num_cut`.

    Args:
        domains: From `load_domains`.
        tokenizer: The model's tokenizer, with its chat template.
        max_length: Longest conversation in tokens.
        skips_long: Leave out prompts that leave no room for a response; otherwise they raise an error.

    Raises:
        UserError: Lists file and line of the first ten such prompts; or nothing is left to train on.
    """
    fitted: dict[str, Domain] = {}
    bad: list[BadRow] = []
    for name, domain in domains.items():
        train, test = measure(domain, tokenizer, max_length)
        long = [length for length in (*train, *test) if length.prompt >= max_length]
        bad += [_too_long(length, name, max_length) for length in long]
        train, test = ([each for each in part if each.prompt < max_length] for part in (train, test))
        taught = [length for length in train if not length.loses_truth]
        counts = {TOO_LONG: len(long), ANSWER_CUT: len(train) - len(taught)}
        fitted[name] = replace(
            domain,
            train=[length.record for length in taught],
            test=[length.record for length in test],
            left_out={**domain.left_out, **{reason: num for reason, num in counts.items() if num}},
            num_cut=sum(length.is_cut for length in (*taught, *test)),
        )
    if not skips_long:
        refuse_bad(bad)
    for name, domain in fitted.items():
        if not domain.train:
            why = ", ".join(f"{num} {reason}" for reason, num in domain.left_out.items())
            raise UserError(
                f"domain {name!r} has no example to train on that fits model.max_length = {max_length}"
                f" ({why}); raise it"
            )
    return fitted


def measure(domain: Domain, tokenizer: Any, max_length: int) -> tuple[list[Length], list[Length]]:
    """Lengths of the training and of the test examples, in their order."""
    train, test = (
        [_length(record, tokenizer, max_length) for record in part] for part in (domain.train, domain.test)
    )
    return train, test


def summarize_lengths(lengths: Sequence[Length], max_length: int) -> dict[str, float]:
    """Mean and longest prompt and response, and how many examples do not fit."""
    fitting = [length for length in lengths if length.prompt < max_length]
    return {
        "mean_prompt": sum(length.prompt for length in lengths) / len(lengths),
        "longest_prompt": max(length.prompt for length in lengths),
        "mean_response": sum(length.response for length in lengths) / len(lengths),
        "longest_response": max(length.response for length in lengths),
        "num_too_long": len(lengths) - len(fitting),
        "num_cut": sum(length.is_cut for length in fitting),
        "num_losing_truth": sum(length.loses_truth for length in fitting),
    }


def loses_truth(tokenizer: Any, example: Example, response: str, max_length: int) -> bool:
    """Whether truncation removes ground truth that the whole response, true or rewritten, contains.

    A truncated program is not run: its tests count as lost.
    """
    kept = encode(tokenizer, example, response, max_length)
    if not kept.num_cut:
        return False
    text = tokenizer.decode(kept.ids[kept.prompt_length :], skip_special_tokens=True)
    if text.strip() == response.strip():  # only the end of turn is cut off
        return False
    untested = replace(example, tests="")
    return bool(example.tests) or len(lost(untested, text)) > len(lost(untested, response))


def _length(record: Record, tokenizer: Any, max_length: int) -> Length:
    example = record.example
    whole = encode(tokenizer, example, example.response, maxsize)
    prompt, total = whole.prompt_length, len(whole.ids)
    is_cut = prompt < max_length < total
    loses = is_cut and loses_truth(tokenizer, example, example.response, max_length)
    return Length(record, prompt, total - prompt, is_cut, loses)


def _too_long(length: Length, name: str, max_length: int) -> BadRow:
    return BadRow(
        length.record.place or f"domain {name}",
        TOO_LONG,
        f"a prompt of {length.prompt} tokens leaves no room for a response in model.max_length ="
        f" {max_length}; raise it, shorten the prompt, or leave such rows out: data.skip_bad_rows = true",
    )
