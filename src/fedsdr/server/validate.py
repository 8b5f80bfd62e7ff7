"""Checks every reply before it is aggregated; a reply that fails is dropped, with a reason.

Flower itself averages NaN silently, broadcasts arrays of wrong shape and accepts any weight
(docs/architecture.md), so no part of a reply is used before these checks. Reasons mention keys, shapes and
numbers, never data.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedsdr.data.sources import RESERVED
from fedsdr.distill.paradox import COUNTS, RATES
from fedsdr.distill.rewriting import FAULTS
from fedsdr.messages import wire
from fedsdr.messages.flower import AWAY
from fedsdr.methods import GIVEN, PROMPTS
from fedsdr.metrics import (
    ALWAYS_SCORED,
    LABEL_CHANGES,
    LABEL_COUNT,
    LABEL_SETS,
    METRICS,
    group_scores,
    read_labels,
)
from fedsdr.rows import MessageDtype, View

MAX_EXAMPLES = 10**9
OF_STAGE = ("loss", "first_loss", "last_loss", "num_steps", "num_tokens")
"""The metrics that a client must report for each stage."""
LARGEST = 1e12
"""Largest value of a metric that is not a share."""
LEAST = -1e-3
"""Least value of a metric: all are at least 0, except for a loss of 0 that rounding made negative."""
SHORT_NAME = r"\w[\w.-]{0,63}"
"""Names of clients and domains; they are used as folder names and parts of keys."""
SHARES = (*RATES, "score", "choice_score", "cut_off_rate", "exact_match", "token_f1", "rouge_l")
"""Metrics between 0 and 1."""
ALLOWED_METRICS = {
    "prepare": re.compile(
        rf"num_(train|test|cut_raw|cut_distilled)|seconds|distill(-test)?/({'|'.join(COUNTS)})@(before|after)"
        rf"|distill(-test)?/num_fallback/({'|'.join(FAULTS).replace(' ', '_')})"
        rf"|distill(-test)?/{LABEL_CHANGES}/{SHORT_NAME}/num_(examples|kept)-\d{{1,2}}"
    ),
    "train": re.compile(
        r"round|num_examples|seconds"
        r"|train/(weights|(before-)?(shared|private|shared\+private|private\+shared)"
        rf"(-({'|'.join(get_args(View))}))?)/({'|'.join(OF_STAGE)})"
    ),
    "evaluate": re.compile(
        rf"round|seconds|eval/{SHORT_NAME}/({'|'.join({*METRICS, *METRICS.values()})}|label_set"
        rf"|{LABEL_COUNT})@(global|personalised)"
    ),
}
"""Keys that a reply to each kind of message may contain; values are numbers from 0.

Counts by rewriter (`_counts_rewriter`) are checked on arrival, because plugins may register rewriters
late."""


class Rejected(Exception):
    """A reply is dropped; the text states the reason."""


@dataclass(frozen=True)
class Update:
    """A validated reply, the input of aggregation."""

    client: str
    arrays: dict[str, NDArray[np.float32]]
    """The client's shared adapter after its local update, by PEFT key."""
    num_examples: int
    """n_k, the weight of the client."""
    metrics: dict[str, float]
    num_bytes: int
    """Size of the arrays as received."""
    control_variates: wire.Float32 | None = None
    """Change of the client's control variates (num_values,), if the correction uses them."""


def check_reply(
    reply: Message,
    client: str,
    num_train: int,
    sent: wire.Arrays,
    dtype: MessageDtype,
    server_round: int,
    max_norm: float,
    has_control_variates: bool = False,
) -> Update:
    """Check a training reply.

    Args:
        reply: The client's reply.
        client: The client's id.
        num_train: Its number of training examples reported by `prepare`; its weight must equal it.
        sent: The shared adapter as it was broadcast.
        dtype: The message type; it determines exactly which arrays must be present.
        server_round: The round of the exchange.
        max_norm: Largest Euclidean norm of one tensor of the adapter, and of its control variates' change.
        has_control_variates: Whether a change of control variates must be included.

    Raises:
        Rejected: With the reason.
    """
    shapes = {key: value.shape for key, value in sent.items()}
    layout = wire.layout(shapes, dtype, has_control_variates)
    content = content_of(reply, {"arrays": ArrayRecord, "metrics": MetricRecord})
    arrays: ArrayRecord = content["arrays"]  # type: ignore[assignment]
    numbers = numbers_of(content, "train", server_round)
    check_num_examples(numbers, num_train)
    if unknown := sorted(set(arrays) - set(layout)):
        raise Rejected(f"{len(unknown)} keys are not on the allow-list, first {unknown[0][:80]!r}")
    if missing := sorted(set(layout) - set(arrays)):
        raise Rejected(f"{len(missing)} keys are missing, first {missing[0]!r}")
    checked = {name: check_array(name, arrays[name], *expected) for name, expected in layout.items()}
    tensors = wire.decode(checked, sent, dtype)
    for key, value in tensors.items():
        check_tensor(key, value, max_norm)
    control_variates = checked.get(wire.CONTROL_VARIATES)
    if control_variates is not None:
        for key, value in wire.unpack(control_variates, shapes).items():
            check_tensor(f"{wire.CONTROL_VARIATES} of {key}", value, max_norm)
    num_bytes = sum(value.nbytes for value in checked.values())
    return Update(client, tensors, num_train, numbers, num_bytes, control_variates)


def check_num_examples(numbers: Mapping[str, float], num_train: int) -> None:
    """Reject a weight other than the client's number of training examples.

    Raises:
        Rejected: States both numbers.
    """
    num_examples = numbers.get("num_examples")
    if type(num_examples) is not int or num_examples != num_train:
        raise Rejected(f"weight num_examples = {num_examples!r} is not the {num_train} reported by prepare")


def check_scores(
    reply: Message, num_test: int, server_round: int, has_global: bool, max_domains: int
) -> dict[str, float]:
    """Check an evaluation reply and return its metrics: the full set for each model and domain.

    Args:
        reply: The client's reply.
        num_test: Its test examples as reported by `prepare`; every model must be scored on all of them.
        server_round: The round of the exchange.
        has_global: Whether there is a global model; if so, it must be scored.
        max_domains: Maximum number of domains per client (`server.max_domains`).

    Raises:
        Rejected: With the reason.
    """
    numbers = numbers_of(content_of(reply, {"metrics": MetricRecord}), "evaluate", server_round)
    scored: dict[str, float] = {"global": 0} if has_global else {}
    groups = group_scores(numbers)
    _check_domains({domain for _, domain in groups}, max_domains)
    for (model, domain), found in groups.items():
        where = f"eval/{domain}/...@{model}"
        if model == "global" and not has_global:
            raise Rejected(f"{where}: there is no global model")
        if domain in RESERVED:
            raise Rejected(f"{where}: not a valid domain name")
        lacking = [name for name in ALWAYS_SCORED if name not in found]
        lacking += [name for name, count in METRICS.items() if (name in found) != (found.get(count, 0) > 0)]
        if lacking:
            raise Rejected(f"{where}: {lacking[0]} and its count must come together")
        if not found["num_examples"]:
            raise Rejected(f"{where}: scored on no examples")
        if max(found["num_scored"], found.get("num_chosen", 0)) > found["num_examples"]:
            raise Rejected(f"{where}: more answers scored than given")
        _check_labels(found, where)
        scored[model] = scored.get(model, 0) + found["num_examples"]
    for model, num in scored.items():
        if num != num_test:
            raise Rejected(f"the {model} model was scored on {num} examples, but prepare reported {num_test}")
    return numbers


def _check_labels(found: Mapping[str, float], where: str) -> None:
    """Check the counts that scores by label are computed from."""
    answers, choices = (sum(read_labels(found, kind).values()) for kind in ("answer", "choice"))
    if answers > found["num_scored"] or choices > found.get("num_chosen", 0):
        raise Rejected(f"{where}: more labels than answers")
    if (answers > 0) != ("label_set" in found):
        raise Rejected(f"{where}: counts of labels and their label_set must come together")
    if not 0 <= found.get("label_set", 0) < LABEL_SETS:
        raise Rejected(f"{where}: label_set is not from 0 to {LABEL_SETS - 1}")


def _check_domains(names: Collection[str], most: int) -> None:
    """Limit the number of domains: each one becomes a row of the page, even if it is made up."""
    if len(names) > most:
        raise Rejected(f"it names {len(names)} domains, above server.max_domains = {most}")


def check_prepared(reply: Message, identity: str, max_domains: int) -> tuple[str, dict[str, float]]:
    """Check a reply to `prepare` and return the client's id and its metrics.

    Args:
        reply: The client's reply.
        identity: Identity of the server's base model; an adapter of another model would ruin the mean.
        max_domains: As in `check_scores`.

    Raises:
        Rejected: With the reason.
    """
    content = content_of(reply, {"client": ConfigRecord, "metrics": MetricRecord})
    client = content["client"].get("id")
    if not isinstance(client, str) or not re.fullmatch(SHORT_NAME, client):
        raise Rejected(f"client id {str(client)[:80]!r} is not a valid name")
    if content["client"].get("model") != identity:
        raise Rejected(f"client {client} has another base model than the server")
    numbers = check_metrics(content["metrics"], "prepare")  # type: ignore[arg-type]
    for name, least in (("num_train", 1), ("num_test", 0)):
        num = numbers.get(name)
        if type(num) is not int or not least <= num <= MAX_EXAMPLES:
            raise Rejected(f"{name} = {num!r} is not between {least} and {MAX_EXAMPLES}")
    _check_domains({key.split("/")[2] for key in numbers if f"/{LABEL_CHANGES}/" in key}, max_domains)
    for part in ("distill", "distill-test"):
        counts = {key for key in numbers if key.startswith(f"{part}/") and "@" in key}
        if counts and counts != {f"{part}/{name}@{when}" for name in COUNTS for when in ("before", "after")}:
            raise Rejected("its counts of the rewriting are incomplete")
        if counts:
            _check_paradox(numbers, part, numbers["num_train" if part == "distill" else "num_test"])
    return client, numbers


def _check_paradox(numbers: Mapping[str, float], part: str, num: float) -> None:
    """Check the counts that weight the clients: after fall-back all examples, before it at most as many."""
    after, before = (numbers[f"{part}/num_examples@{when}"] for when in ("after", "before"))
    if after != num or before > num:
        raise Rejected(f"{part}: counts over {before} and {after} examples, but it has {num}")
    for when in ("before", "after"):
        if numbers[f"{part}/num_checkable@{when}"] > numbers[f"{part}/num_examples@{when}"]:
            raise Rejected(f"{part}: more checkable examples than examples")


def content_of(reply: Message, expected: Mapping[str, type]) -> RecordDict:
    """Return the records of a reply if they are exactly the expected ones, with their types."""
    if reply.has_error():
        said = "".join(char for char in (reply.error.reason or "")[:120] if char.isprintable())
        what = "was gone" if reply.error.code in AWAY else "failed"
        raise Rejected(f"the client {what}: {said}")
    found = {name: type(record) for name, record in reply.content.items()}
    if found != expected:
        first = next(iter(found), "")
        raise Rejected(
            f"it contains {len(found)} records, first {first[:80]!r}; expected {', '.join(expected)}"
        )
    return reply.content


def numbers_of(content: RecordDict, kind: str, server_round: int) -> dict[str, float]:
    """Return the metrics of a reply if they are allowed and belong to the round."""
    numbers = check_metrics(content["metrics"], kind)  # type: ignore[arg-type]
    if numbers.get("round") != server_round:
        raise Rejected(f"it answers round {numbers.get('round')}, expected {server_round}")
    return numbers


def check_metrics(metrics: MetricRecord, kind: str) -> dict[str, float]:
    """Return the metrics if all keys are allowed for this kind and all values are plausible numbers.

    Raises:
        Rejected: With the reason.
    """
    for key, value in metrics.items():
        if not (ALLOWED_METRICS[kind].fullmatch(key) or (kind == "prepare" and _counts_rewriter(key))):
            raise Rejected(f"metric {key[:80]!r} is not on the allow-list")
        if not isinstance(value, int | float) or not math.isfinite(value) or value < LEAST:
            raise Rejected(f"metric {key} is not a finite number of at least 0")
        name = key.rpartition("/")[2].partition("@")[0]
        if name in SHARES and value > 1:
            raise Rejected(f"metric {key} = {value} is not between 0 and 1")
        if value > LARGEST:
            raise Rejected(f"metric {key} = {value} is above {LARGEST:g}")
        if (name.startswith("num_") or name == "label_set") and type(value) is not int:
            raise Rejected(f"metric {key} = {value} is not a whole number")
    for stage in {key.split("/")[1] for key in metrics if key.startswith("train/")}:
        if missing := [name for name in OF_STAGE if f"train/{stage}/{name}" not in metrics]:
            raise Rejected(f"metric train/{stage}/{missing[0]} is missing")
    if "seconds" not in metrics:
        raise Rejected("metric seconds is missing")
    return dict(metrics)  # type: ignore[arg-type]


def _counts_rewriter(key: str) -> bool:
    """Whether a metric counts the rewritings of a built-in or registered rewriter."""
    part, _, name = key.rpartition("/num_prompt/")
    return part in ("distill", "distill-test") and (name == GIVEN or name in PROMPTS)


def check_array(name: str, array: Array, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the array if it is exactly what is expected (`wire.read_array`).

    Raises:
        Rejected: With the reason.
    """
    try:
        return wire.read_array(name, array, dtype, shape)
    except ValueError as reason:
        raise Rejected(str(reason)) from None


def check_tensor(key: str, values: NDArray[np.float32], max_norm: float) -> None:
    """Reject a tensor that would ruin the mean.

    Raises:
        Rejected: With the reason.
    """
    if not np.isfinite(values).all():
        raise Rejected(f"{key} contains values that are not finite")
    norm = float(np.linalg.norm(values.astype(np.float64)))
    if norm > max_norm:
        raise Rejected(f"{key} has norm {norm:.3g}, above server.max_norm = {max_norm:.3g}")
