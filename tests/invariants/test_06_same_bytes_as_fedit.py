"""Invariant 6: fedsdr sends as many bytes of arrays as fedit, per client and round; a message adds 2 kB."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

Recorded = Callable[..., tuple[Path, list[tuple[Message, Message]]]]


@pytest.mark.parametrize("other", ["fedsdr", "fedsdr-drop", "fedsdr-once", "feddpa", "fdlora", "fedala"])
def test_personal_methods_send_what_fedit_sends(
    recorded: Recorded, wire: Callable[[Message], bytes], other: str
) -> None:
    def sizes(method: str, measure: Callable[[Message], int]) -> dict[tuple[str, int], tuple[int, int]]:
        """Bytes down and up, by round and client."""
        return {
            (reply.metadata.group_id, reply.metadata.src_node_id): (measure(question), measure(reply))
            for question, reply in recorded(method=method)[1]
            if reply.metadata.message_type == "train"
        }

    def values(message: Message) -> int:
        return sum(array.numpy().nbytes for array in message.content["arrays"].values())

    def whole(message: Message) -> int:
        return len(wire(message))

    # Rank 4 on both layers' q, k, v, o, gate, up and down: r (d_in + d_out) numbers of 4 bytes each.
    widths = (64 + 64) + (64 + 32) + (64 + 32) + (64 + 64) + (64 + 128) + (64 + 128) + (128 + 64)
    plain = 2 * 4 * widths * 4
    expected = {(server_round, node): (plain, plain) for server_round in "12" for node in (1, 2, 3)}
    assert sizes(other, values) == sizes("fedit", values) == expected

    for method in (other, "fedit"):
        for down, up in sizes(method, whole).values():
            assert plain < down < plain + 2000
            assert plain < up < plain + 2000


def test_control_variates_double_the_bytes_of_training_and_of_nothing_else(
    recorded: Recorded, scaffold: dict[str, Any], wire: Callable[[Message], bytes]
) -> None:
    num_bytes = 2 * 4 * 1024 * 4  # as above
    folder, exchanges = recorded(method="fedit", **scaffold)
    for question, reply in exchanges:
        if reply.metadata.message_type == "train":
            assert 0 < len(wire(question)) - 2 * num_bytes < 2500
            assert 0 < len(wire(reply)) - 2 * num_bytes < 2500
        elif reply.metadata.message_type == "evaluate":
            assert 0 < len(wire(question)) - num_bytes < 2500
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for kind, name in (("train", "num_bytes_up"), ("round", "num_bytes_down")):
        assert {event[name] for event in events if event["event"] == kind} == {2 * num_bytes}


@pytest.mark.parametrize(("dtype", "size"), [("float16", 2), ("int8", 1)])
def test_small_types_send_a_half_and_a_quarter(
    recorded: Recorded, wire: Callable[[Message], bytes], dtype: str, size: int
) -> None:
    """2 layers of 7 tensors A and B each, and with int8 a scale of 4 bytes for each tensor."""
    num_values, scales = 2 * 4 * 1024, 28 * 4 * (dtype == "int8")
    for _, reply in recorded(method="fedit", **{"communication.dtype": dtype})[1]:
        if reply.metadata.message_type == "train":
            assert 0 < len(wire(reply)) - size * num_values - scales < 2000
