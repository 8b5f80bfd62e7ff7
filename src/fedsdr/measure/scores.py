"""From the clients' evaluation replies to one table: per domain and mean, for each model.

Each number is pooled over the clients that hold test examples of the domain, weighted by what it
was counted over. "mean" is the plain mean over domains, so that a large domain does not hide a
small one.
"""

from collections.abc import Sequence
from typing import Any

from fedsdr.storage import Event
from fedsdr.tables import METRICS

Table = dict[str, dict[str, dict[str, float]]]
"""Model -> domain or "mean" -> metric -> value."""


def table_of_round(events: Sequence[Event]) -> Table:
    """Pool the `evaluate` events of one round.

    A model has a mean only if it was scored on every domain that the global model was: clients that
    were never drawn have no personalised model.
    """
    parts: dict[str, dict[str, list[dict[str, float]]]] = {}
    for event in events:
        of_client: dict[tuple[str, str], dict[str, float]] = {}
        for key, value in event.items():
            if key.startswith("eval/"):
                _, domain, rest = key.split("/")
                metric, model = rest.split("@")
                of_client.setdefault((model, domain), {})[metric] = value
        for (model, domain), metrics in of_client.items():
            parts.setdefault(model, {}).setdefault(domain, []).append(metrics)
    table: Table = {}
    for model, by_domain in parts.items():
        table[model] = {domain: pool(found) for domain, found in sorted(by_domain.items())}
        if by_domain.keys() == parts["global"].keys():
            table[model]["mean"] = _mean(list(table[model].values()))
    return table


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Plain mean of each metric over the domains that have it."""
    mean: dict[str, float] = {}
    for name in METRICS:
        values = [row[name] for row in rows if name in row]
        if values:
            mean[name] = sum(values) / len(values)
    for name in ("num_examples", "num_scored"):
        mean[name] = sum(row[name] for row in rows)
    return mean


def pool(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Pool the metrics of several clients on one domain, each weighted by what it was counted over."""
    pooled: dict[str, float] = {}
    for name, weight in METRICS.items():
        having = [part for part in parts if name in part]
        if having:
            total = sum(part[weight] for part in having)
            pooled[name] = sum(part[name] * part[weight] for part in having) / total
            pooled[weight] = total
    pooled["num_scored"] = pooled.get("num_scored", 0)
    return pooled
