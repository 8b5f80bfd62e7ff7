"""Notices that a reader needs before the numbers of a run: one list, for the terminal and the page.

Input: a run's records (environment.json, the events of metrics.jsonl, pooled scores). Output: sentences,
warnings first. A warning means that the run, or one of its numbers, is not what its name promises.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsdr.metrics import NO_LABEL, Scores, read_labels
from fedsdr.model.base import BUILT_IN
from fedsdr.report.events import Classes, class_name, kept_by_label
from fedsdr.run_folder import RunFolder
from fedsdr.storage import Event, read_json, read_lines

FEW = 20
"""With fewer test examples in a domain a grid has a warning."""


@dataclass(frozen=True)
class Notice:
    """One sentence."""

    text: str
    is_warning: bool = False

    def __str__(self) -> str:
        """The sentence as a line for the terminal."""
        return f"warning: {self.text}" if self.is_warning else self.text


def run_notices(folder: Path, base: Scores, final: Scores) -> list[Notice]:
    """All notices of a run, finished or not, warnings first.

    Args:
        folder: The run's folder, with at least environment.json.
        base: Scores of the base model; {} if there are none yet.
        final: Scores of the shown round; {} if there are none yet.
    """
    run = RunFolder(folder)
    environment = read_json(run.environment)
    data = environment.get("data", {})
    classes, events = data.get("classes", {}), read_lines(run.log)
    is_random = environment.get("model", {}).get("origin") == BUILT_IN["tiny"]["origin"]
    found = [
        *([Notice("the model has random weights: its scores say nothing about a method", True)] * is_random),
        *rewriting_notices(events, classes),
        *label_notices(base, final, classes),
        *cut_notices(events),
        *weight_notices(events),
        *data_notices(data),
        *(
            Notice(
                f"the run moved to another machine after round {move['after_round']}: other last bits",
                True,
            )
            for move in environment.get("moved", ())
        ),
    ]
    return sorted(found, key=lambda notice: not notice.is_warning)


def data_notices(data: Mapping[str, Any]) -> list[Notice]:
    """Properties of the data that change the meaning of scores; from environment.json's "data"."""
    counted = {
        "num_duplicates": "test prompts are training prompts too (see `fedsdr data`)",
        "num_known_responses": "test responses are training responses too, to other prompts",
        "num_inconsistent": "responses lack their own label, answer or facts (see `fedsdr data`)",
    }
    lines = list(data.get("notices", ()))
    for key, what in counted.items():
        lines += [f"{name}: {num} {what}" for name, num in data.get(key, {}).items() if num]
    return [Notice(line) for line in lines]


def rewriting_notices(events: Iterable[Event], classes: Classes) -> list[Notice]:
    """How many rewritings fell back and why; a warning for more than half, all of a label, or none made."""
    prepared = [event for event in events if "distill/num_examples@after" in event]
    if prepared and not count_fallbacks(prepared)[1]:
        return [Notice("distill.only chooses no training response of any client: nothing is rewritten", True)]
    total = _fallback("", prepared)
    if not total:
        return []
    of_clients = [_fallback(f"{event['client']}: ", [event]) for event in prepared]
    warned = [notice for notice in of_clients if notice and notice.is_warning]
    found = [total, *(warned if len(warned) < len(prepared) else ())]  # if all: one line for all
    for event in prepared:
        for domain, counts in kept_by_label(event).items():
            lost = [label for label, (num, kept) in counts.items() if num and not kept]
            if lost and len(lost) < len(counts):
                names = " and ".join(class_name(classes, domain, label) for label in lost)
                found.append(Notice(f"{event['client']}: no rewriting of {domain}'s {names} is taught", True))
    return found


def cut_notices(events: Iterable[Event]) -> list[Notice]:
    """How many responses are truncated at model.max_length; a warning if more than half are."""
    prepared = [event for event in events if event["event"] == "prepare"]
    found = []
    for view, what in (("raw", "training responses"), ("distilled", "responses that are taught rewritten")):
        num = sum(int(event.get(f"num_cut_{view}", 0)) for event in prepared)
        of = sum(int(event.get("num_train", 0)) for event in prepared)
        if num:
            text = f"{num} of {of} {what} are cut at model.max_length and do not teach the model where to end"
            found.append(Notice(text, 2 * num > of))
    return found


def weight_notices(events: Iterable[Event]) -> list[Notice]:
    """List each client that counts for fewer examples than it reported."""
    return [
        Notice(
            f"{event['client']}: counts for {event['weight']:,} of the {event['num_train']:,} training"
            " examples that it reported (server.max_weight)",
            True,
        )
        for event in events
        if event["event"] == "prepare" and "weight" in event
    ]


def label_notices(base: Scores, final: Scores, classes: Classes) -> list[Notice]:
    """List each domain with only one answered or likeliest label although the true labels differ."""
    models = {"base": base.get("global", {}), **final}
    found: dict[str, list[str]] = {}
    for model, by_domain in models.items():
        for domain, row in by_domain.items():
            for kind, what in (("answer", "every answer is"), ("choice", "the likeliest choice is always")):
                counts = read_labels(row, kind)
                given = {label for _, label in counts}
                if len({true for true, _ in counts}) > 1 and len(given) == 1:
                    (label,) = given
                    text = "no answer gives a label"
                    if label != NO_LABEL:
                        text = f"{what} {class_name(classes, domain, label)}"
                    found.setdefault(f"{domain}: {text}", []).append(model)
    return [Notice(f"{text} ({', '.join(names)} model)", True) for text, names in found.items()]


def few_test_examples(tables: Iterable[Scores]) -> list[Notice]:
    """The domain with the fewest test examples of all scored base models, if these are fewer than `FEW`."""
    nums = {
        (int(row["num_examples"]), domain)
        for table in tables
        for domain, row in table.get("global", {}).items()
        if domain != "mean"
    }
    num, domain = min(nums, default=(FEW, ""))
    text = f"{domain} has only {num} test examples; intervals over seeds do not cover the draw of examples"
    return [Notice(text, True)] * (num < FEW)


def count_fallbacks(events: Iterable[Event]) -> tuple[Counter[str], int]:
    """How often rewritings fell back, by reason, and their number.

    Examples excluded by `distill.only` are not counted, since they have no rewriting.
    """
    prefix = "distill/num_fallback/"
    reasons: Counter[str] = Counter()
    total = 0
    for event in events:
        reasons.update({k.removeprefix(prefix): int(n) for k, n in event.items() if k.startswith(prefix)})
        total += int(event.get("distill/num_examples@after", 0))
    num_left_out = reasons.pop("not_chosen", 0)
    return reasons, total - num_left_out


def _fallback(who: str, prepared: Sequence[Event]) -> Notice | None:
    """How many rewritings of some clients fell back; None if none did."""
    reasons, of = count_fallbacks(prepared)
    num = reasons.total()
    if not num:
        return None
    why = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in reasons.most_common())
    effect = ", so no rewritten text is taught" if num == of else ""
    hint = "; raise distill.max_new_tokens" if 2 * reasons["cut_off"] > of else ""
    text = f"{who}{num} of {of} rewritings fell back to the true response{effect}: {why}{hint}"
    return Notice(text, 2 * num > of)
