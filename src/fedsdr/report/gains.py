"""Did it help? Gains of a run's models over the base: records, a table, and a sentence for the page's head.

Input: pooled scores, and the answers of the models where available. A sign precedes each difference with an
interval: ✓ better, ✗ worse, ? undecided; the page and the terminal colour it.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedsdr.metrics import Scores
from fedsdr.report.blocks import Block, Examples, ShownExample, Text, Words
from fedsdr.report.notices import count_fallbacks
from fedsdr.report.sheets import MODELS, NONE, Sheet, number, signed, signed_interval
from fedsdr.run_folder import RunFolder
from fedsdr.stats import difference_interval, half_sample_interval, mean_interval, phi
from fedsdr.storage import Event, read_lines

BETTER, WORSE, UNDECIDED = "✓", "✗", "?"
MOST_SAMPLES = 2
"""Number of prompts of each domain shown on the page."""
WHOSE = {"global": "The global model's", "personalised": "The personalised models'"}
Answers = Mapping[str, Sequence[Event]]
"""Model -> one record for each test prompt, in one order for all models."""


def read_answers(run: RunFolder, server_round: int) -> Answers:
    """Answers after a round, of the clients on this machine with answers of every model: they pair."""
    found: dict[str, list[Event]] = {}
    folders = [client.final_answers(server_round) for client in run.client_folders()]
    models = [model for model in MODELS if any(paths[model].exists() for paths in folders)]
    for paths in folders:
        if all(paths[model].exists() for model in models):
            for model in models:
                found.setdefault(model, []).extend(read_lines(paths[model]))
    return found


def gain_records(base: Scores, final: Scores, answers: Answers) -> list[Event]:
    """Difference of each model to the base by domain and mean, in the share of right answers and in loss.

    Args:
        base: Scores of the base model.
        final: Scores after the shown round.
        answers: Pairs the answers, which narrows the intervals; {} if they are at the clients.

    Returns:
        {"domain", "model", "metric", "base", "value", "difference", "low", "high", "num"} each. The interval
        of a score of a domain is Newcombe's; that of a loss, if the answers are available, is by half samples
        of the examples; that of a mean is `mean_interval`.
    """
    records: list[Event] = []
    before = base.get("global", {})
    for model in (model for model in MODELS if model in final):
        gains: dict[str, list[float]] = {"score": [], "loss": []}
        ends: dict[str, list[tuple[float, float] | None]] = {"score": [], "loss": []}
        rows = final[model]
        for domain in sorted(before.keys() & rows.keys(), key=lambda name: (name == "mean", name)):
            for metric in ("score", "loss"):
                if metric not in before[domain] or metric not in rows[domain]:
                    continue
                old, new = before[domain][metric], rows[domain][metric]
                found: tuple[float, float] | None
                if domain == "mean":
                    known = [pair for pair in ends[metric] if pair]
                    is_whole = known and len(known) == len(ends[metric])
                    found = mean_interval(gains[metric], known) if is_whole else None
                else:
                    if metric == "loss":
                        found = _loss_interval(answers, domain, model, new - old)
                    else:
                        num = rows[domain]["num_scored"]
                        paired = _correlation(answers, domain, model)
                        found = difference_interval(new, num, old, before[domain]["num_scored"], paired)
                    gains[metric].append(new - old)
                    ends[metric].append(found)
                low, high = found or (None, None)
                record = {"domain": domain, "model": model, "metric": metric, "base": old, "value": new}
                record |= {"difference": new - old, "low": low, "high": high}
                records.append(record | {"num": rows[domain]["num_scored"]})
    return records


def gain_sheet(records: Sequence[Event]) -> Sheet:
    """Differences to the base: a row for each domain and the mean, a column for each metric and model."""
    columns = {(r["metric"], r["model"]): None for r in sorted(records, key=lambda r: r["metric"] == "loss")}
    cells = {(r["domain"], r["metric"], r["model"]): r for r in records}
    domains = sorted({record["domain"] for record in records}, key=lambda name: (name == "mean", name))
    names = {"score": "right answers", "loss": "loss"}
    return Sheet(
        "Differences to the base model",
        "l" + "r" * len(columns),
        ("domain", *(f"{names[metric]}, {model}" for metric, model in columns)),
        tuple(
            (domain, *(_difference(cells.get((domain, *column))) for column in columns)) for domain in domains
        ),
        tuple(records),
        num_summary=sum(domain == "mean" for domain in domains),
        note="Right answers: difference of shares, with a 95 % interval over test examples, paired by prompt"
        f" if the answers are available; {BETTER} better, {WORSE} worse, {UNDECIDED} the interval contains 0."
        " Loss: on true responses, nats per token, with an interval over test examples if their losses are"
        " available; lower is better.",
    )


def did_it_help(records: Sequence[Event], events: Sequence[Event]) -> list[str]:
    """Summarise the run's gain in one sentence per model; empty if nothing was compared."""
    means = {(r["model"], r["metric"]): r for r in records if r["domain"] == "mean"}
    sentences = []
    for model, whose in WHOSE.items():
        score, loss = (means.get((model, metric)) for metric in ("score", "loss"))
        parts = []
        if score:
            gain, num = round(score["difference"], 2), int(score["num"])
            sign = sign_of(score["low"], score["high"])
            found = "not significant" if sign == UNDECIDED else "significant"
            than = f"{abs(gain):.2f} {'higher' if gain > 0 else 'lower'} than" if gain else "equal to"
            over = f"{num} answers: {found} over test examples, of one seed"
            parts.append(f"share of right answers is {than} the base's ({over})")
        if loss:
            ends = signed_interval(loss["low"], loss["high"], 3)
            interval = f" (by {signed(loss['difference'], 3)} {ends})" if loss["low"] is not None else ""
            parts.append(f"loss goes from {number(loss['base'], 3)} to {number(loss['value'], 3)}{interval}")
        if parts:
            sentences.append(f"{whose} {'; '.join(parts)}.")
    reasons, num = count_fallbacks(events)
    if sentences and num:
        sentences.append(f"{reasons.total()} of {num} rewritings fell back.")
    return sentences


def sample_blocks(answers: Answers) -> list[Block]:
    """The first prompts of each domain with the answers of all models and the true response, side by side."""
    shown: Counter[str] = Counter()
    examples = []
    for records in zip(*answers.values(), strict=False):
        first = records[0]
        shown[first["domain"]] += 1
        if shown[first["domain"]] <= MOST_SAMPLES:
            texts = [
                Words(model, one["answer"], one["right"]) for model, one in zip(answers, records, strict=True)
            ]
            texts.append(Words("true response", first["output"]))
            examples.append(ShownExample(first["domain"], first["instruction"], first["input"], texts))
    if not examples:
        return [Text("No answers available: they are at the clients, or nothing was evaluated yet.")]
    examples.sort(key=lambda one: one.domain)
    return [Examples(f"The first {MOST_SAMPLES} test prompts of each domain", examples)]


def sign_of(low: float | None, high: float | None, is_lower_better: bool = False) -> str:
    """✓, ✗ or ? for a difference, by its interval; "" without one."""
    if low is None or high is None:
        return ""
    if low <= 0 <= high:
        return UNDECIDED
    return BETTER if (high < 0) == is_lower_better else WORSE


def _difference(record: Event | None) -> str:
    if record is None:
        return NONE
    digits = 2 if record["metric"] == "score" else 3
    parts = (
        sign_of(record["low"], record["high"], record["metric"] == "loss"),
        signed(record["difference"], digits),
        signed_interval(record["low"], record["high"], digits) if record["low"] is not None else "",
    )
    return " ".join(part for part in parts if part)


def _correlation(answers: Answers, domain: str, model: str) -> float:
    """Correlation of correctness on the same prompts between the base and a model; 0 without answers."""
    both = zip(answers.get("base", ()), answers.get(model, ()), strict=False)
    pairs = [
        (a["right"], b["right"])
        for a, b in both
        if a["domain"] == b["domain"] == domain and a["right"] is not None and b["right"] is not None
    ]
    return phi(pairs)


def _loss_interval(
    answers: Answers, domain: str, model: str, difference: float
) -> tuple[float, float] | None:
    """Interval of a difference in loss, from the losses of both models on the same test examples.

    None if the losses of some counted examples are missing.
    """
    both = zip(answers.get("base", ()), answers.get(model, ()), strict=False)
    pairs = [
        (b["nats"] - a["nats"], a["num_tokens"])
        for a, b in both
        if a["domain"] == b["domain"] == domain and "nats" in a and "nats" in b
    ]
    if not pairs:
        return None
    nats, tokens = np.array(pairs).T

    def per_token(places: NDArray[np.int64]) -> float:
        return float(nats[places].sum() / tokens[places].sum())

    is_whole = math.isclose(per_token(np.arange(len(pairs))), difference, abs_tol=1e-6)
    return half_sample_interval(per_token, len(pairs)) if is_whole else None
