"""Scores of a model on test examples: greedy answers judged exactly, and held-out loss.

An answer is correct if it keeps all the ground truth of the example: label, final answer, facts, and tests
that its code passes. Domains without ground truth have no score, only losses and scores of their words
(`text_scores`). If an example has choices, the likeliest one is reported too, which needs no reading of
answers. The loss is given on both the true response y and the rewriting y~, since loss on y alone penalises
FedSD by construction.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsdr import __version__
from fedsdr.config import Eval
from fedsdr.data.checks import filler_rate, is_checkable, lost, num_words, redundancy, rules, unsupported
from fedsdr.data.conversation import Conversation, encode_prompt, prompt_turns
from fedsdr.data.examples import Example, as_record
from fedsdr.data.thinking import is_unclosed
from fedsdr.data.truth.labels import find_label, fold_label
from fedsdr.evaluate.confusion import count_labels
from fedsdr.evaluate.text_scores import exact_match, rouge_l, token_f1
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import Base
from fedsdr.model.generation import Answer, Route, Sampling, generate, no_route
from fedsdr.model.likelihood import likeliest
from fedsdr.model.loss import token_losses
from fedsdr.rows import Adapter
from fedsdr.storage import Event, content_hash, locked, read_json, write_json

Evaluation = tuple[dict[str, dict[str, float]], list[Event]]
"""Metrics by domain, and one record for each prompt."""
Answering = Callable[[Base, Sequence[Example], Eval], list[Answer]]
"""Gives the answers to examples, in their order, by the model that is active."""


@dataclass(frozen=True)
class TestSet:
    """A client's test examples and their conversations."""

    __test__ = False  # not a pytest test class

    examples: Sequence[Example]
    raw: Sequence[Conversation]
    """Conversations with the true responses."""
    distilled: Sequence[Conversation]
    """Conversations with the rewritings; empty if there are none."""


def answer(
    base: Base,
    examples: Sequence[Example],
    scoring: Eval,
    models: Sequence[int] = (),
    route: Route = no_route,
) -> list[Answer]:
    """Greedy answers to the examples' prompts, in order; equal prompts of a model are answered once.

    Args:
        base: The model, with the desired adapters active.
        examples: Test examples.
        scoring: Lengths and batches.
        models: If several models answer (`model.multi_lora`): the one of each example.
        route: Given the model of each token of the next forward pass.
    """
    prompts = [tuple(encode_prompt(base.tokenizer, prompt_turns(example))) for example in examples]
    asked = [*zip(models or [0] * len(prompts), prompts, strict=True)]
    different = [*dict.fromkeys(asked)]
    written = generate(
        base,
        [prompt for _, prompt in different],
        Sampling(scoring.max_new_tokens),
        num_rows=scoring.batch_size,
        route=lambda of_tokens: route([different[place][0] for place in of_tokens]),
    )
    answers = dict(zip(different, written, strict=True))
    return [answers[one] for one in asked]


def evaluate(
    model: LoraModel,
    active: Sequence[Adapter],
    tests: TestSet,
    scoring: Eval,
    mix: Mapping[Adapter, float] | None = None,
    answering: Answering = answer,
) -> Evaluation:
    """Score one model on a client's test examples.

    Args:
        model: Base and adapters.
        active: Adapters in the forward pass.
        tests: The client's test examples.
        scoring: Lengths and batches.
        mix: Weights of the adapters; default: one.
        answering: Answers the examples; by default alone, possibly together with other clients' examples.

    Returns:
        Metrics by domain, with the counts over which they are means (`metrics.METRICS`), and one record for
        each prompt: of `score_answer`, with "nats", the sum of -log p over the "num_tokens" tokens of its
        true response.
    """
    base = model.base
    with model.inference(active, mix):
        answers = answering(base, tests.examples, scoring)
        chosen = choose(base, tests.examples, scoring.batch_size)
        raw, distilled = (
            token_losses(base, side, scoring.batch_size) for side in (tests.raw, tests.distilled)
        )
        by_domain: dict[str, dict[str, float]] = {}
        records: list[Event] = []
        for domain in sorted({example.domain for example in tests.examples}):
            rows = [row for row, example in enumerate(tests.examples) if example.domain == domain]
            new = [
                score_answer(tests.examples[row], answers[row], scoring.code_timeout, chosen[row])
                for row in rows
            ]
            metrics = summarise(new, scoring.text_scores)
            metrics |= count_labels([tests.examples[row] for row in rows], new)
            for name, losses in (("loss", raw), ("loss_distilled", distilled)):
                if losses:
                    own = [losses[row] for row in rows]
                    num_tokens = sum(map(len, own))
                    metrics |= {name: sum(map(sum, own)) / num_tokens, f"{name}_tokens": num_tokens}
            for record, row in zip(new, rows, strict=True):
                record |= {"nats": sum(raw[row]), "num_tokens": len(raw[row])}
            by_domain[domain] = metrics
            records += new
    return by_domain, records


def evaluate_base(
    model: LoraModel, tests: TestSet, scoring: Eval, folder: Path, answering: Answering
) -> Evaluation:
    """Score the base model like `evaluate`, or load its scores from the cache in `folder`.

    All runs on the same tests start from the same base; the file name is a hash of everything that determines
    the scores.
    """
    distilled = [conversation.ids for conversation in tests.distilled]
    key = content_hash(
        model.base.fingerprint, scoring.model_dump(), [as_record(example) for example in tests.examples],
        [conversation.ids for conversation in tests.raw], distilled, __version__, rules(),
    )  # fmt: skip
    path = folder / f"base-{key}.json"
    with locked(path):
        if not path.exists():
            write_json(path, evaluate(model, (), tests, scoring, answering=answering))
    by_domain, records = read_json(path)
    return by_domain, records


def choose(base: Base, examples: Sequence[Example], batch_size: int) -> list[str | None]:
    """Return the likeliest choice of each example; None if it has no label or no choices."""
    rows = [row for row, example in enumerate(examples) if example.label and example.choices]
    found = dict(zip(rows, likeliest(base, [examples[row] for row in rows], batch_size), strict=True))
    return [found.get(row) for row in range(len(examples))]


def score_answer(example: Example, given: Answer, code_timeout: float, chosen: str | None = None) -> Event:
    """Score one answer: the record of its prompt.

    `right` is None if the example has no ground truth, `chosen` and `given` if it has no label or no choices;
    `given` is the label that the answer gives, "" for none. Thinking that never ends is not an answer, and
    counts as truncated.
    """
    has_answer = not is_unclosed(given.text)
    text = given.text if has_answer else ""
    missing = lost(example, text, code_timeout)
    return {
        "domain": example.domain,
        "instruction": example.instruction,
        "input": example.context,
        "output": example.response,
        "label": example.label,
        "answer": given.text,
        "right": not missing if is_checkable(example) else None,
        "lost": list(missing),
        "unsupported": unsupported(example, text),
        "finished": given.finished and has_answer,
        "given": find_label(text, example.choices) if example.label and example.choices else None,
        "chosen": chosen,
    }


def summarise(records: Sequence[Event], text_scores: str = "free text") -> dict[str, float]:
    """Means over the records of one domain; scores only if something could be judged.

    Args:
        records: From `score_answer`.
        text_scores: Selects the answers to compare word by word with the true response (`eval.text_scores`).
    """
    num = len(records)
    texts = [record["answer"] for record in records]
    judged = [record["right"] for record in records if record["right"] is not None]
    metrics: dict[str, float] = {
        "num_examples": num,
        "num_scored": len(judged),
        "unsupported_rate": sum(record["unsupported"] for record in records) / num,
        "words": sum(map(num_words, texts)) / num,
        "filler_rate": sum(map(filler_rate, texts)) / num,
        "redundancy": sum(map(redundancy, texts)) / num,
        "cut_off_rate": sum(not record["finished"] for record in records) / num,
    }
    if judged:
        metrics["score"] = sum(judged) / len(judged)
    chosen = [
        fold_label(record["chosen"]) == fold_label(record["label"])
        for record in records
        if record["chosen"] is not None
    ]
    if chosen:
        metrics |= {"choice_score": sum(chosen) / len(chosen), "num_chosen": len(chosen)}
    compared = [
        ("" if is_unclosed(record["answer"]) else record["answer"], record["output"])
        for record in records
        if text_scores == "all" or (text_scores == "free text" and record["right"] is None)
    ]
    if compared:
        for name, score in (("exact_match", exact_match), ("token_f1", token_f1), ("rouge_l", rouge_l)):
            metrics[name] = sum(score(*pair) for pair in compared) / len(compared)
        metrics["num_text"] = len(compared)
    return metrics
