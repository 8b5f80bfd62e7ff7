"""Checks every reply before it is combined: what does not pass is dropped, with a reason.

Flower itself averages NaN silently, broadcasts arrays of wrong shape and takes any weight
(docs/architecture.md), so nothing of a reply is used before it is checked here. Reasons speak of
keys, shapes and numbers, never of data.
"""

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray

MAX_EXAMPLES = 10**9
RATES = "score|unsupported_rate|omission_rate|words|filler_rate|redundancy|cut_off_rate|loss|loss_distilled"
COUNTS = "num_examples|num_scored|num_checkable|loss_tokens|loss_distilled_tokens"
ALLOWED_METRICS = {
    "prepare": re.compile(
        rf"num_(train|test)|seconds|distill/({RATES}|{COUNTS}|\w+_true|length_ratio)@(before|after)"
        r"|distill/num_(fallback|prompt)/[\w-]+"
    ),
    "train": re.compile(
        r"round|num_examples|seconds"
        r"|train/(shared|private|shared\+private)/(loss|first_loss|last_loss|num_steps|num_tokens)"
    ),
    "evaluate": re.compile(rf"round|seconds|eval/[^/@]+/({RATES}|{COUNTS})@(global|personalised)"),
}
"""Keys that a reply to each kind of message may hold. Values are numbers."""


class Rejected(Exception):
    """A reply that is not used; the text says why."""


@dataclass(frozen=True)
class Update:
    """A reply that passed: what combination works on."""

    client: str
    arrays: dict[str, NDArray[np.float32]]
    """The client's shared adapter after its local update, by PEFT key."""
    num_examples: int
    """n_k, the weight of the client."""
    metrics: dict[str, float]


def check_reply(
    reply: Message, client: str, shapes: Mapping[str, tuple[int, ...]], server_round: int, max_norm: float
) -> Update:
    """Check a training reply.

    Args:
        reply: What the client sent.
        client: The client's id, for the record.
        shapes: Keys and shapes that the arrays must have, no more and no fewer.
        server_round: The round that was asked for.
        max_norm: Largest Euclidean norm of one tensor.

    Raises:
        Rejected: With the reason.
    """
    if reply.has_error():
        raise Rejected(f"the client failed: {reply.error.reason}")
    content = reply.content
    if set(content) != {"arrays", "metrics"}:
        raise Rejected(f"holds records {sorted(content)}, expected arrays and metrics")
    arrays, metrics = content["arrays"], content["metrics"]
    if not isinstance(arrays, ArrayRecord) or not isinstance(metrics, MetricRecord):
        raise Rejected("its records have the wrong types")
    numbers = check_metrics(metrics, "train")
    if numbers.get("round") != server_round:
        raise Rejected(f"answers round {numbers.get('round')}, asked was {server_round}")
    num_examples = metrics.get("num_examples")
    if not isinstance(num_examples, int) or not 1 <= num_examples <= MAX_EXAMPLES:
        raise Rejected(f"weight num_examples = {num_examples!r} is not from 1 to {MAX_EXAMPLES}")
    if unknown := sorted(set(arrays) - set(shapes)):
        raise Rejected(f"{len(unknown)} keys are not on the allow-list, first {unknown[0][:80]!r}")
    if missing := sorted(set(shapes) - set(arrays)):
        raise Rejected(f"{len(missing)} keys are missing, first {missing[0]!r}")
    checked = {key: check_array(key, arrays[key], shape, max_norm) for key, shape in shapes.items()}
    return Update(client, checked, num_examples, numbers)


def check_metrics(metrics: MetricRecord, kind: str) -> dict[str, float]:
    """Return the metrics if all keys are listed for that kind and all values are finite numbers.

    Raises:
        Rejected: With the reason.
    """
    for key, value in metrics.items():
        if not ALLOWED_METRICS[kind].fullmatch(key):
            raise Rejected(f"metric {key[:80]!r} is not on the allow-list")
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise Rejected(f"metric {key} is no finite number")
    return dict(metrics)  # type: ignore[arg-type]


def check_array(key: str, array: Array, shape: tuple[int, ...], max_norm: float) -> NDArray[np.float32]:
    """Return the array if its header, as sent, promises what is expected and its values keep it.

    The header is read before the data: one that promises a huge array would be allocated first.

    Raises:
        Rejected: With the reason.
    """
    stream = io.BytesIO(array.data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise Rejected(f"{key} is not in NumPy's format 1.0")
        found, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError:
        raise Rejected(f"{key} is not in NumPy's format") from None
    if dtype != np.float32 or found != shape or fortran:
        raise Rejected(f"{key} is {dtype} of shape {found}, expected float32 of shape {shape}")
    data = stream.read()
    if len(data) != 4 * math.prod(shape):
        raise Rejected(f"{key} has {len(data)} bytes, expected {4 * math.prod(shape)}")
    values = np.frombuffer(data, dtype=np.float32).reshape(shape)
    if not np.isfinite(values).all():
        raise Rejected(f"{key} holds values that are not finite")
    norm = float(np.linalg.norm(values.astype(np.float64)))
    if norm > max_norm:
        raise Rejected(f"{key} has norm {norm:.3g}, above server.max_norm = {max_norm:.3g}")
    return values
