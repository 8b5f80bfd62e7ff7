"""A run as one record of metrics per round: for loggers, callbacks and data frames."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedsdr.metrics import Scores
from fedsdr.storage import Event

Record = dict[str, Any]


def round_record(events: Iterable[Event]) -> Record:
    """Metrics of one round, from its events of kind "train" and "round".

    Returns:
        "round", "seconds", "num_bytes_down" and so on; "train/<stage>/loss", the mean over clients; and
        "client/<id>/..." for everything that a client reported.
    """
    record: Record = {}
    losses: dict[str, list[float]] = {}
    for event in events:
        if event["event"] == "round":
            record = {key: value for key, value in event.items() if key != "event"} | record
        if event["event"] != "train":
            continue
        for key, value in event.items():
            if key not in ("event", "round", "client"):
                record[f"client/{event['client']}/{key}"] = value
            if key.startswith("train/") and key.endswith("/loss"):
                losses.setdefault(key, []).append(value)
    return record | {key: sum(values) / len(values) for key, values in sorted(losses.items())}


def score_record(server_round: int, scores: Scores) -> Record:
    """Scores of one round: "round", and "eval/<model>/<domain>/<metric>"."""
    return {"round": server_round} | {
        f"eval/{model}/{domain}/{metric}": value
        for model, domains in scores.items()
        for domain, numbers in domains.items()
        for metric, value in numbers.items()
    }


def history(events: Sequence[Event], evaluations: Mapping[int, Scores]) -> list[Record]:
    """A record for each trained or evaluated round, by round; 0 is the base model."""
    trained = {event["round"] for event in events if event["event"] == "round"}
    return [
        score_record(number, evaluations.get(number, {}))
        | round_record(event for event in events if event["round"] == number)
        for number in sorted(trained | evaluations.keys())
    ]
