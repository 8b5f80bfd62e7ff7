"""What is measured of a model on test examples, and the shape of the results."""

from collections.abc import Mapping
from typing import Any

METRICS: Mapping[str, str] = {
    "score": "num_scored",
    "choice_score": "num_chosen",
    "unsupported_rate": "num_examples",
    "words": "num_examples",
    "filler_rate": "num_examples",
    "redundancy": "num_examples",
    "cut_off_rate": "num_examples",
    "loss": "loss_tokens",
    "loss_distilled": "loss_distilled_tokens",
}
"""Metric -> the count that it is a mean over."""

ALWAYS_SCORED = ("num_examples", "num_scored", *(name for name in METRICS if METRICS[name] == "num_examples"))
"""Present for every model and domain. Scores need examples with a known answer; losses need tokens."""

Scores = dict[str, dict[str, dict[str, float]]]
"""Model -> domain or "mean" -> metric -> value."""


def group_scores(metrics: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, float]]:
    """Sort metrics by the key eval/<domain>/<metric>@<model>: (model, domain) -> metric -> value."""
    grouped: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in metrics.items():
        if key.startswith("eval/"):
            _, domain, rest = key.split("/")
            metric, model = rest.split("@")
            grouped.setdefault((model, domain), {})[metric] = value
    return grouped
