"""The shared adapter in messages: one vector, optionally in a smaller type.

All transmitted tensors are concatenated in one array, in the order of their keys: Flower describes each array
in 500 bytes, and an adapter has hundreds of tensors. The server sends float32, so all clients start a round
from the same values. If an aggregation changes the base, the server also sends all factors of that change,
including to clients that missed rounds. A client of smaller rank returns only its own ranks. A client returns

- float32: the adapter's values;
- float16: its change since the broadcast, v~ = half(v + e);
- int8: the same in 255 steps, v~ = s round((v + e) / s) with s = max |v + e| / 127 for each tensor.

With control variates (`client.scaffold`) the server also sends c, and a client dc_k, float32 of that length.

e is the rounding error of earlier messages, e <- v + e - v~ (error feedback). The client stores it, and does
not learn whether the server used its message: the content of a dropped message is lost, including its part of
e.

Headers are compared, never believed: bytes that clients read as numbers of different types would be different
models to them (`read_array`).

Papers: Seide et al., Interspeech 2014 (error feedback); Karimireddy et al., ICML 2019, arXiv 1901.09847.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedsdr.rows import Aggregation, MessageDtype, Method

Tensors = TypeVar("Tensors", bound=Any)
"""Arrays of NumPy or tensors of torch."""
Float32 = NDArray[np.float32]
Arrays = dict[str, Float32]
"""Tensors by PEFT key."""
Shapes = Mapping[str, tuple[int, ...]]

VALUES, SCALES, CONTROL_VARIATES = "values", "scales", "control_variates"
RESIDUAL, RESIDUAL_RANK = "residual", "residual_rank"
"""Names of the arrays of a message."""
NPY_1_0 = b"\x93NUMPY\x01\x00"
"""First bytes of files written by `numpy.save`, the format in which Flower sends arrays."""
DTYPES: Mapping[MessageDtype, str] = {"float32": "<f4", "float16": "<f2", "int8": "|i1"}


def layout(
    shapes: Shapes, dtype: MessageDtype, has_control_variates: bool = False
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array in a client's message."""
    arrays: dict[str, tuple[str, tuple[int, ...]]] = {}
    size = (sum(map(math.prod, shapes.values())),)
    arrays[VALUES] = DTYPES[dtype], size
    if has_control_variates:
        arrays[CONTROL_VARIATES] = "<f4", size
    if dtype == "int8":
        arrays[SCALES] = "<f4", (len(shapes),)
    return arrays


def uploaded(method: Method, aggregation: Aggregation, shared: Mapping[str, Tensors]) -> dict[str, Tensors]:
    """The part of the shared adapter, by PEFT key, that clients send under this method and aggregation."""
    return {key: value for key, value in shared.items() if method.sends(key, aggregation)}


def downloaded(method: Method, aggregation: Aggregation, shared: Mapping[str, Tensors]) -> dict[str, Tensors]:
    """The part of the shared adapter that the server sends: the uploaded part, unless it is redrawn."""
    return {} if aggregation.is_fresh else uploaded(method, aggregation, shared)


def broadcast(
    tensors: Arrays, residual: Arrays | None = None, control_variates: Float32 | None = None
) -> ArrayRecord:
    """Pack the shared adapter, and the residual and c if present, into a message to the clients."""
    record = ArrayRecord({VALUES: Array(pack(tensors))})
    if residual:
        record[RESIDUAL] = Array(pack(residual))
        record[RESIDUAL_RANK] = Array(np.array([rank_of(residual)], np.int64))
    if control_variates is not None:
        record[CONTROL_VARIATES] = Array(control_variates)
    return record


def read_array(name: str, array: Array, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the array if its header and its bytes match the expectation exactly.

    The header is compared, not parsed: NumPy's parser allocates whatever a header promises, and fails in many
    ways on an invalid one.

    Raises:
        ValueError: With the reason.
    """
    start = 10 + int.from_bytes(array.data[8:10], "little")
    header, data = array.data[10:start].rstrip(), array.data[start:]
    expected = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    if array.data[:8] != NPY_1_0 or header != expected:
        raise ValueError(
            f"{name} is not {np.dtype(dtype).name} of shape {shape}; its header says {header[:80]!r}"
        )
    num_bytes = np.dtype(dtype).itemsize * math.prod(shape)
    if len(data) != num_bytes:
        raise ValueError(f"{name} has {len(data)} bytes, expected {num_bytes}")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def receive(record: ArrayRecord, shapes: Shapes) -> Arrays:
    """Unpack the shared adapter from the server's message.

    Raises:
        ValueError: It is not float32 of exactly this size; the other functions that receive do likewise.
    """
    return unpack(_read_values(VALUES, record, shapes), shapes)


def receive_residual(record: ArrayRecord, shapes: Shapes) -> Arrays:
    """Unpack the residual from the server's message; `shapes` are those of the whole shared adapter."""
    if RESIDUAL not in record:
        return {}
    rank = int(read_array(RESIDUAL_RANK, record[RESIDUAL_RANK], "<i8", (1,))[0])
    shapes = residual_shapes(shapes, rank)
    return unpack(_read_values(RESIDUAL, record, shapes), shapes)


def receive_control_variates(record: ArrayRecord, shapes: Shapes) -> Float32 | None:
    """C from the server's message; None if it contains none. `shapes` are those of what is sent."""
    return _read_values(CONTROL_VARIATES, record, shapes) if CONTROL_VARIATES in record else None


def encode(
    new: Arrays, received: Arrays, error_feedback: Float32 | None, dtype: MessageDtype
) -> tuple[dict[str, NDArray[Any]], Float32 | None]:
    """Convert a trained adapter to the arrays of a message to the server.

    Args:
        new: The adapter after training.
        received: The adapter as it was broadcast.
        error_feedback: e, the rounding error of this client's earlier messages (num_values,); None at first.
        dtype: The type of the transmitted values.

    Returns:
        The arrays, and the new e; None for float32, which is exact.
    """
    if dtype == "float32":
        return {VALUES: pack(new)}, None
    wanted = pack(new) - pack(received)
    if error_feedback is not None:
        wanted += error_feedback
    shapes = {key: value.shape for key, value in new.items()}
    arrays: dict[str, NDArray[Any]]
    if dtype == "float16":
        largest = np.finfo(np.float16).max
        arrays = {VALUES: wanted.clip(-largest, largest).astype(np.float16)}
    else:
        scales = pack(
            {key: np.abs(part).max(keepdims=True) / 127 for key, part in unpack(wanted, shapes).items()}
        )
        steps = np.divide(wanted, _spread(scales, shapes), out=np.zeros_like(wanted), where=wanted != 0)
        arrays = {VALUES: np.rint(steps).astype(np.int8), SCALES: scales}
    lost = wanted - _change(arrays, shapes)
    return arrays, lost


def decode(arrays: Mapping[str, NDArray[Any]], sent: Arrays, dtype: MessageDtype) -> Arrays:
    """Read a client's arrays, with the types and shapes of `layout`; `sent` is the broadcast."""
    shapes = {key: value.shape for key, value in sent.items()}
    if dtype == "float32":
        return unpack(arrays[VALUES].astype(np.float32), shapes)
    change = unpack(_change(arrays, shapes), shapes)
    return {key: value + change[key] for key, value in sent.items()}


def pack(tensors: Arrays) -> Float32:
    """All values of the tensors in one vector (num_values,), in the order of their keys."""
    return np.concatenate([np.zeros(0, np.float32), *(tensors[key].ravel() for key in sorted(tensors))])


def unpack(vector: Float32, shapes: Shapes) -> Arrays:
    """Inverse of `pack`; the tensors are views of the vector, in the order of `shapes`."""
    places: dict[str, Float32] = {}
    start = 0
    for key in sorted(shapes):
        end = start + math.prod(shapes[key])
        places[key] = vector[start:end].reshape(shapes[key])
        start = end
    return {key: places[key] for key in shapes}


def pairs(keys: Iterable[str]) -> list[tuple[str, str]]:
    """The keys of A and B of each layer."""
    return [(key, key.replace(".lora_A.", ".lora_B.")) for key in keys if ".lora_A." in key]


def rank_of(tensors: Mapping[str, Tensors]) -> int:
    """Rank of an adapter: the largest if layers differ, 0 without layers."""
    return max((int(value.shape[0]) for key, value in tensors.items() if ".lora_A." in key), default=0)


def shapes_of(tensors: Mapping[str, Tensors], rank: int = 0) -> dict[str, tuple[int, ...]]:
    """Shape of each of an adapter's tensors; if a rank is given, of one of that rank in all layers."""
    if not rank:
        return {key: value.shape for key, value in tensors.items()}
    return {k: (rank, *v.shape[1:]) if ".lora_A." in k else (len(v), rank) for k, v in tensors.items()}


def cut(tensors: Mapping[str, Tensors], rank: int) -> dict[str, Tensors]:
    """The first `rank` ranks of A and B."""
    return {key: value[:rank] if ".lora_A." in key else value[:, :rank] for key, value in tensors.items()}


def pad(tensors: Arrays, shapes: Shapes) -> Arrays:
    """A and B, zero-padded to the full rank."""
    padded = {key: np.zeros(shapes[key], np.float32) for key in tensors}
    for key, value in tensors.items():
        rows, columns = value.shape
        padded[key][:rows, :columns] = value
    return padded


def residual_shapes(shapes: Shapes, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a residual of this rank, limited in each layer (d_out, d_in) to the full rank."""
    found: dict[str, tuple[int, ...]] = {}
    for key_a, key_b in pairs(shapes):
        d_in, d_out = shapes[key_a][1], shapes[key_b][0]
        own = min(rank, d_in, d_out)
        found |= {key_a: (own, d_in), key_b: (d_out, own)}
    return found


def _read_values(name: str, record: ArrayRecord, shapes: Shapes) -> Float32:
    return read_array(name, record[name], "<f4", (sum(map(math.prod, shapes.values())),)).copy()


def _change(arrays: Mapping[str, NDArray[Any]], shapes: Shapes) -> Float32:
    values = arrays[VALUES].astype(np.float32)
    return values * _spread(arrays[SCALES].astype(np.float32), shapes) if SCALES in arrays else values


def _spread(scales: Float32, shapes: Shapes) -> Float32:
    """The scale of each tensor, repeated for each of its values."""
    return np.repeat(scales, [math.prod(shapes[key]) for key in sorted(shapes)])
