"""The shared adapter on its way: one vector, and what a smaller type makes of it.

All tensors that learn lie in one array, in the order of their keys: Flower describes each array in 500
bytes, and an adapter has hundreds of tensors. What goes to the clients is float32, so all begin a round
from the same. What comes back is

- float32: the adapter's values;
- float16: its change since the broadcast, v~ = half(v + e);
- int8: the same in 255 steps, v~ = s round((v + e) / s) with s = max |v + e| / 127 for each tensor.

With control variates (`client.controls`) c travels down and dc_k up beside it, in float32 of the same length.

e is what earlier messages lost, e <- v + e - v~ (error feedback). It is kept at the client, which does not
learn whether the server used its message: what a dropped one held is lost with it, its part of e too.

Papers: Seide et al., Interspeech 2014 (error feedback); Karimireddy et al., ICML 2019, arXiv 1901.09847.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedsdr.config import Settings
from fedsdr.tables import COMBINATIONS, METHODS, WireType

Tensors = TypeVar("Tensors")
"""Arrays of NumPy or tensors of torch."""
Float32 = NDArray[np.float32]
Arrays = dict[str, Float32]
"""Tensors by PEFT key."""
Shapes = Mapping[str, tuple[int, ...]]

VALUES, SCALES, CONTROLS = "values", "scales", "controls"
"""Names of the arrays of a message."""
DTYPES: Mapping[WireType, str] = {"float32": "<f4", "float16": "<f2", "int8": "|i1"}


def layout(
    shapes: Shapes, wire: WireType, has_controls: bool = False
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array of a client's message."""
    arrays: dict[str, tuple[str, tuple[int, ...]]] = {}
    size = (sum(map(math.prod, shapes.values())),)
    arrays[VALUES] = DTYPES[wire], size
    if has_controls:
        arrays[CONTROLS] = "<f4", size
    if wire == "int8":
        arrays[SCALES] = "<f4", (len(shapes),)
    return arrays


def travelling(settings: Settings, shared: Mapping[str, Tensors]) -> dict[str, Tensors]:
    """The part of the shared adapter, by PEFT key, that method and combination send."""
    method, combination = METHODS[settings.method], COMBINATIONS[settings.server.combination]
    return {key: value for key, value in shared.items() if method.sends(key, combination)}


def broadcast(tensors: Arrays, controls: Float32 | None = None) -> ArrayRecord:
    """Put the shared adapter, and c where there is one, into a message to the clients."""
    record = ArrayRecord({VALUES: Array(pack(tensors))})
    if controls is not None:
        record[CONTROLS] = Array(controls)
    return record


def receive(record: ArrayRecord, shapes: Shapes) -> Arrays:
    """Take the shared adapter out of the server's message."""
    return unpack(record[VALUES].numpy().copy(), shapes)


def encode(
    new: Arrays, received: Arrays, residual: Float32 | None, wire: WireType
) -> tuple[ArrayRecord, Float32 | None]:
    """Put a trained adapter into a message to the server.

    Args:
        new: The adapter after training.
        received: The adapter as it was broadcast.
        residual: e, what earlier messages of this client lost (num_values,); None at first.
        wire: The type that travels.

    Returns:
        The arrays, and the new e; None for float32, which loses nothing.
    """
    if wire == "float32":
        return ArrayRecord({VALUES: Array(pack(new))}), None
    wanted = pack(new) - pack(received)
    if residual is not None:
        wanted += residual
    shapes = {key: value.shape for key, value in new.items()}
    arrays: dict[str, NDArray[Any]]
    if wire == "float16":
        largest = np.finfo(np.float16).max
        arrays = {VALUES: wanted.clip(-largest, largest).astype(np.float16)}
    else:
        scales = pack(
            {key: np.abs(part).max(keepdims=True) / 127 for key, part in unpack(wanted, shapes).items()}
        )
        steps = np.divide(wanted, _spread(scales, shapes), out=np.zeros_like(wanted), where=wanted != 0)
        arrays = {VALUES: np.rint(steps).astype(np.int8), SCALES: scales}
    lost = wanted - _change(arrays, shapes)
    return ArrayRecord({name: Array(value) for name, value in arrays.items()}), lost


def decode(arrays: Mapping[str, NDArray[Any]], sent: Arrays, wire: WireType) -> Arrays:
    """Read a client's arrays, of the types and shapes of `layout`; `sent` is what was broadcast."""
    shapes = {key: value.shape for key, value in sent.items()}
    if wire == "float32":
        return unpack(arrays[VALUES].astype(np.float32), shapes)
    change = unpack(_change(arrays, shapes), shapes)
    return {key: value + change[key] for key, value in sent.items()}


def pack(tensors: Arrays) -> Float32:
    """All numbers of the tensors in one vector (num_values,), in the order of their keys."""
    return np.concatenate([np.zeros(0, np.float32), *(tensors[key].ravel() for key in sorted(tensors))])


def unpack(vector: Float32, shapes: Shapes) -> Arrays:
    """Undo `pack`; the tensors are views of the vector, in the order of `shapes`."""
    places: dict[str, Float32] = {}
    start = 0
    for key in sorted(shapes):
        end = start + math.prod(shapes[key])
        places[key] = vector[start:end].reshape(shapes[key])
        start = end
    return {key: places[key] for key in shapes}


def _change(arrays: Mapping[str, NDArray[Any]], shapes: Shapes) -> Float32:
    values = arrays[VALUES].astype(np.float32)
    return values * _spread(arrays[SCALES].astype(np.float32), shapes) if SCALES in arrays else values


def _spread(scales: Float32, shapes: Shapes) -> Float32:
    """Each tensor's scale for each of its numbers."""
    return np.repeat(scales, [math.prod(shapes[key]) for key in sorted(shapes)])
