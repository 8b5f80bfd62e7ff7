"""Scores that a constant answer cannot raise, from counts of true and given labels.

At a client, examples and their records become counts by class. At the server, the counts are summed over
clients and become scores. These are not means over examples, so the clients' own scores cannot be pooled.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from fedsdr.data.classes import classes_of
from fedsdr.data.examples import Example
from fedsdr.data.truth.labels import fold_label
from fedsdr.metrics import LABEL_COUNT, LABEL_SETS, NO_LABEL, read_labels
from fedsdr.storage import Event, content_hash


def count_labels(examples: Sequence[Example], records: Sequence[Event]) -> dict[str, int]:
    """Count (true, given) labels of one domain, by the labels' indices among its sorted choices.

    Returns:
        `num_answer-<true>-<given>` over the labels that the answers give (`none`: no label),
        `num_choice-<true>-<given>` over the likeliest choices, and `label_set`, 16 bits of a hash of the
        choices: counts over different choices must not be summed. {} if the domain has no classes.
    """
    classes = classes_of(examples)
    if not classes:
        return {}
    place = {name: str(number) for number, name in enumerate(classes)}
    counts: Counter[str] = Counter()
    for record in records:
        if record["given"] is not None:
            true = place[fold_label(record["label"])]
            counts[f"num_answer-{true}-{place.get(fold_label(record['given']), NO_LABEL)}"] += 1
            counts[f"num_choice-{true}-{place[fold_label(record['chosen'])]}"] += 1
    return dict(sorted(counts.items())) | {"label_set": int(content_hash(classes), 16) % LABEL_SETS}


def sum_labels(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sum the counts of several clients on one domain; {} if their choices, or those of one, differ."""
    having = [part for part in parts if part.keys() & {"num_chosen", "label_set"}]
    sets = {part.get("label_set") for part in having}
    if len(sets) != 1 or (label_set := sets.pop()) is None:
        return {}
    counts: Counter[str] = Counter()
    for part in having:
        counts.update({name: int(num) for name, num in part.items() if re.fullmatch(LABEL_COUNT, name)})
    return {**dict(sorted(counts.items())), "label_set": label_set}


def label_scores(row: Mapping[str, float]) -> dict[str, float]:
    """Scores of one domain from its counts; {} if it has none, only the first if one class is true.

    With n_kj the number of answers j where k is true, n_k and m_j the sums over j and over k, n the total,
    and K the set of classes that are true at least once:

    - majority_share: max_k n_k / n, the score of always answering the most frequent label;
    - balanced_accuracy: mean over K of n_kk / n_k, which is 1 / K for any constant answer;
    - macro_f1: mean over K of 2 n_kk / (n_k + m_k);
    - matthews: (n sum n_kk - sum n_k m_k) / sqrt((n^2 - sum m_k^2) (n^2 - sum n_k^2)), 0 for a constant
      answer; an answer without a label counts as a class of its own (Gorodkin 2004);
    - choice_balanced_accuracy: balanced accuracy of the likeliest choices.
    """
    answers, choices = read_labels(row, "answer"), read_labels(row, "choice")
    if not answers:
        return {}
    true, given, right = _totals(answers)
    if len(true) == 1:  # a constant answer could be right in all
        return {"majority_share": 1.0}
    num, num_right = true.total(), right.total()
    both = sum(true[label] * given[label] for label in true)
    spread = math.prod(num**2 - sum(one**2 for one in side.values()) for side in (true, given))
    scores = {
        "majority_share": max(true.values()) / num,
        "balanced_accuracy": fmean(right[label] / true[label] for label in true),
        "macro_f1": fmean(2 * right[label] / (true[label] + given[label]) for label in true),
        "matthews": (num * num_right - both) / math.sqrt(spread) if spread else 0.0,
    }
    if choices:
        true, _, right = _totals(choices)
        scores["choice_balanced_accuracy"] = fmean(right[label] / true[label] for label in true)
    return scores


def _totals(counts: Mapping[tuple[str, str], int]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """n_k, m_j and n_kk of counts n_kj."""
    true, given, right = Counter[str](), Counter[str](), Counter[str]()
    for (label, other), num in counts.items():
        true[label] += num
        given[other] += num
        right[label] += num * (label == other)
    return true, given, right
