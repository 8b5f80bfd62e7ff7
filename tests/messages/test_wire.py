"""What travels comes out as it went in, and what a small type loses is sent later."""

from typing import get_args

import numpy as np
import pytest
from flwr.app import ArrayRecord
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.messages import wire
from fedsdr.rows import MessageDtype

SHAPES = {"m.lora_B.weight": (5, 2), "m.lora_A.weight": (2, 3), "a.lora_A.weight": (2, 4)}


def draw(seed: int, size: float = 1.0) -> wire.Arrays:
    rng = np.random.default_rng(seed)
    return {key: (size * rng.normal(size=shape)).astype(np.float32) for key, shape in SHAPES.items()}


def opened(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}


def test_a_broadcast_comes_out_with_its_keys_and_bits():
    sent = draw(0)
    found = wire.receive(wire.broadcast(sent), SHAPES)
    assert list(found) == list(SHAPES)
    assert all(found[key].tobytes() == sent[key].tobytes() for key in SHAPES)


def test_nothing_to_send_is_an_empty_array():
    assert wire.receive(wire.broadcast({}), {}) == {}
    assert wire.layout({}, "float32") == {"values": ("<f4", (0,))}


@pytest.mark.parametrize("dtype", get_args(MessageDtype))
def test_a_message_has_the_layout_that_the_guard_expects(dtype: MessageDtype):
    """10 + 6 + 8 numbers, three tensors."""
    arrays, _ = wire.encode(draw(1), draw(0), None, dtype)
    found = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    assert found == wire.layout(SHAPES, dtype)
    num_bytes = sum(array.nbytes for array in arrays.values())
    assert num_bytes == {"float32": 24 * 4, "float16": 24 * 2, "int8": 24 + 3 * 4}[dtype]


def test_control_variates_travel_beside_the_adapter_in_as_many_bytes():
    sent, control_variates = draw(0), np.arange(24, dtype=np.float32)
    found = opened(wire.broadcast(sent, control_variates=control_variates))
    assert found["control_variates"].tobytes() == control_variates.tobytes()
    assert found["values"].tobytes() == wire.pack(sent).tobytes()
    layout = wire.layout(SHAPES, "float32", has_control_variates=True)
    assert layout == {"values": ("<f4", (24,)), "control_variates": ("<f4", (24,))}


def test_float32_loses_nothing():
    new, received = draw(1), draw(0)
    arrays, error_feedback = wire.encode(new, received, None, "float32")
    assert error_feedback is None
    decoded = wire.decode(arrays, received, "float32")
    assert all(decoded[key].tobytes() == new[key].tobytes() for key in SHAPES)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@given(st.integers(0, 50), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_the_error_is_at_most_half_a_step_and_is_the_error_feedback(
    dtype: MessageDtype, seed: int, size: float
):
    """A step of int8 is the tensor's largest change over 127; half precision keeps 11 bits of each number."""
    received, change = draw(seed), draw(seed + 1, size)
    new = {key: received[key] + change[key] for key in SHAPES}
    arrays, error_feedback = wire.encode(new, received, None, dtype)
    lost = wire.unpack(error_feedback, SHAPES)
    decoded = wire.decode(arrays, received, dtype)
    for key, value in new.items():
        wanted = np.abs(value - received[key])
        bound = wanted.max() / 254 if dtype == "int8" else wanted * 2.0**-11 + 2.0**-25
        assert (np.abs(lost[key]) <= bound * 1.001).all()
        np.testing.assert_allclose(decoded[key] + lost[key], value, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_over_many_rounds_what_is_lost_does_not_add_up(dtype: MessageDtype):
    """The sum of what arrived is the sum of the changes but for the last error_feedback; without it int8 drifts.

    Each round changes one number by 1 and all others by a thousandth, a quarter of a step of int8.
    """
    zero = {"x": np.zeros(4, np.float32)}
    change = {"x": np.array([1, 1e-3, 1e-3, 1e-3], np.float32)}
    arrived, alone, error_feedback = np.zeros(4), np.zeros(4), None
    for _ in range(40):
        arrays, error_feedback = wire.encode(change, zero, error_feedback, dtype)
        arrived += wire.decode(arrays, zero, dtype)["x"]
        alone += wire.decode(wire.encode(change, zero, None, dtype)[0], zero, dtype)["x"]
    np.testing.assert_allclose(arrived + error_feedback, 40 * change["x"], rtol=1e-5)
    assert (np.abs(error_feedback) < 1 / 127).all()
    if dtype == "int8":
        assert alone[1] == 0


def test_a_change_of_nothing_is_nothing():
    """A scale of zero divides nothing."""
    same = draw(0)
    for dtype in ("float16", "int8"):
        arrays, error_feedback = wire.encode(same, same, None, dtype)
        assert not any(array.any() for array in arrays.values())
        assert not error_feedback.any()
