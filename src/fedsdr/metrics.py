"""Metrics of a model on test examples, and the shape of the results."""

import re
from collections.abc import Mapping
from typing import Any

METRICS: Mapping[str, str] = {
    "score": "num_scored",
    "choice_score": "num_chosen",
    "exact_match": "num_text",
    "token_f1": "num_text",
    "rouge_l": "num_text",
    "unsupported_rate": "num_examples",
    "words": "num_examples",
    "filler_rate": "num_examples",
    "redundancy": "num_examples",
    "cut_off_rate": "num_examples",
    "loss": "loss_tokens",
    "loss_distilled": "loss_distilled_tokens",
}
"""Metric -> the count over which it is a mean."""

LABEL_SCORES = ("majority_share", "balanced_accuracy", "macro_f1", "matthews", "choice_balanced_accuracy")
"""Computed by the server from counts of labels (`evaluate.confusion`); not means over examples."""
NO_LABEL = "none"
LABEL_COUNT = rf"num_(answer|choice)-(\d{{1,2}})-(\d{{1,2}}|{NO_LABEL})"
"""Name of a count: answers or likeliest choices, index of the true label, index of the given one."""
LABEL_CHANGES = "by-label"
"""Between distill/ and <domain>/num_examples-<place> or num_kept-<place>: counts of rewritings by label."""
LABEL_SETS = 2**16
"""Values of `label_set`, a short hash of the choices that the indices refer to."""

ALWAYS_SCORED = ("num_examples", "num_scored", *(name for name in METRICS if METRICS[name] == "num_examples"))
"""Present for every model and domain. Scores need examples with a known answer; losses need tokens."""

Scores = dict[str, dict[str, dict[str, float]]]
"""Model -> domain or "mean" -> metric -> value."""


def group_scores(metrics: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, float]]:
    """Group metrics by the key eval/<domain>/<metric>@<model>: (model, domain) -> metric -> value."""
    grouped: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in metrics.items():
        if key.startswith("eval/"):
            _, domain, rest = key.split("/")
            metric, model = rest.split("@")
            grouped.setdefault((model, domain), {})[metric] = value
    return grouped


def all_fell_back(base: Scores, final: Scores) -> list[str]:
    """Domains whose test rewritings all fell back: for each model, both losses are of the true responses."""
    losses: dict[str, list[bool]] = {}
    for by_domain in (*base.values(), *final.values()):
        for domain, row in by_domain.items():
            if domain != "mean" and "loss_distilled" in row:
                losses.setdefault(domain, []).append(row["loss_distilled"] == row["loss"])
    return [domain for domain, are_equal in sorted(losses.items()) if all(are_equal)]


def read_labels(row: Mapping[str, float], kind: str) -> dict[tuple[str, str], int]:
    """(True, given) -> count, from the `num_<kind>-...` of one domain."""
    found = {match: num for name, num in row.items() if (match := re.fullmatch(LABEL_COUNT, name))}
    return {(match[2], match[3]): int(num) for match, num in found.items() if match[1] == kind}
