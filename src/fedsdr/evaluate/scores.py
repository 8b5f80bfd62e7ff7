"""From the clients' evaluation replies to one table: per domain and mean, for each model.

Each number is pooled over the clients with test examples of the domain, weighted by its own count; scores by
label come from summed counts (`confusion`). "mean" is the plain mean over domains, so that a large domain
does not hide a small one.
"""

from collections.abc import Sequence
from typing import Any

from fedsdr.evaluate.confusion import label_scores, sum_labels
from fedsdr.metrics import LABEL_SCORES, METRICS, Scores, group_scores
from fedsdr.storage import Event


def table_of_round(events: Sequence[Event], num_test: int) -> Scores:
    """Pool the `evaluate` events of one round.

    A model has a mean only if it was scored on all test examples: replies may be dropped, and clients that
    were never sampled have no personalised model. A mean over fewer would not be comparable.

    Args:
        events: One for each client that answered.
        num_test: Test examples of all clients.
    """
    parts: dict[str, dict[str, list[dict[str, float]]]] = {}
    for event in events:
        for (model, domain), metrics in group_scores(event).items():
            parts.setdefault(model, {}).setdefault(domain, []).append(metrics)
    table: Scores = {}
    for model, by_domain in parts.items():
        pooled = {domain: pool(found) for domain, found in sorted(by_domain.items())}
        table[model] = {domain: row | label_scores(row) for domain, row in pooled.items()}
        rows = list(table[model].values())
        if sum(row["num_examples"] for row in rows) == num_test:
            table[model]["mean"] = _mean(rows)
    return table


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Plain mean of each metric over the domains that have it."""
    mean: dict[str, float] = {}
    for name in (*METRICS, *LABEL_SCORES):
        values = [row[name] for row in rows if name in row]
        if values:
            mean[name] = sum(values) / len(values)
    for name in ("num_examples", "num_scored"):
        mean[name] = sum(row[name] for row in rows)
    return mean


def pool(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Pool the metrics of several clients on one domain, each weighted by its own count.

    Counts of labels are summed.
    """
    pooled: dict[str, float] = {}
    for name, weight in METRICS.items():
        having = [part for part in parts if name in part]
        if having:
            total = sum(part[weight] for part in having)
            pooled[name] = sum(part[name] * part[weight] for part in having) / total
            pooled[weight] = total
    pooled["num_scored"] = pooled.get("num_scored", 0)
    return pooled | sum_labels(parts)
