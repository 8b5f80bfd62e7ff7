"""A round's folder: the global model's adapter in PEFT's format, written atomically.

Its first `lora.rank` ranks are the shared adapter. If the aggregation changed the base, the residual's ranks
follow, zero-padded in layers with fewer ranks, so that the file alone is the global model.

A round is finished when `server/round-0003` exists; a run resumes after the last finished round. With
`server.keep_updates`, `server/updates/round-0003/<client>.safetensors` holds each client's update.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save

from fedsdr.config import Lora, Server
from fedsdr.messages.wire import Arrays, cut, pad, rank_of, residual_shapes, shapes_of
from fedsdr.model.adapter_files import join, load_adapter, read_whole, save_adapter
from fedsdr.run_folder import RunFolder, list_rounds
from fedsdr.server.optimize import Moments
from fedsdr.storage import write_file, write_folder

MOMENTS = "optimizer.safetensors"


def save_round(
    folder: RunFolder,
    server_round: int,
    arrays: Arrays,
    residual: Arrays,
    moments: Moments,
    lora: Lora,
    base: str,
) -> None:
    """Write a round: the adapter's two files, directly in its folder, and the server optimizer's moments."""
    state = {key: torch.from_numpy(value.copy()) for key, value in arrays.items()}
    if residual:
        rank = rank_of(residual)
        padded = pad(residual, shapes_of(residual, rank))
        state = join(state, {key: torch.from_numpy(value) for key, value in padded.items()})
        lora = lora.widened(lora.rank + rank)

    def fill(aside: Path) -> None:
        save_adapter(aside, state, lora, base)
        if moments:
            # Not `save_file`, which hides the system's error when the disk is full.
            (aside / MOMENTS).write_bytes(save(moments))

    write_folder(folder.round(server_round), fill)


def remove_rounds(folder: RunFolder, server_round: int, server: Server) -> None:
    """Delete the earlier rounds that `server.keep_rounds` does not keep."""
    for number in list_rounds(folder.server):
        if number < server_round and not is_kept(number, server):
            shutil.rmtree(folder.round(number))


def is_kept(server_round: int, server: Server) -> bool:
    """Whether a round is kept after later ones; the last round always is."""
    if server.keep_rounds in ("all", "last"):
        return server.keep_rounds == "all"
    return server_round % int(server.keep_rounds) == 0


def load_moments(folder: RunFolder, server_round: int) -> Moments:
    """Read the server optimizer's moments after a round; empty before its first step and for fedavg.

    Raises:
        UserError: The file is damaged.
    """
    path = folder.round(server_round) / MOMENTS
    return read_whole(path, load_file) if path.exists() else {}


def load_round(folder: RunFolder, server_round: int, rank: int) -> tuple[Arrays, Arrays]:
    """Read the shared adapter (of the given rank) and the residual ({} if there is none) of a round."""
    state = load_adapter(folder.round(server_round))
    arrays = {key: tensor.numpy() for key, tensor in state.items()}
    shared = {key: np.ascontiguousarray(value) for key, value in cut(arrays, rank).items()}
    rest = {key: value[rank:] if ".lora_A." in key else value[:, rank:] for key, value in arrays.items()}
    more = rank_of(rest)
    shapes = residual_shapes(shapes_of(arrays), more)
    residual = {key: np.ascontiguousarray(rest[key][: s[0], : s[1]]) for key, s in shapes.items()}
    return shared, residual if more else {}


def remove_updates(folder: RunFolder, server_round: int) -> None:
    """Delete the saved updates of an interrupted round before it is repeated."""
    shutil.rmtree(folder.updates(server_round), ignore_errors=True)


def save_update(folder: RunFolder, server_round: int, client: str, arrays: Arrays) -> None:
    """Save a client's shared adapter unchanged in the server's folder."""
    write_file(folder.updates(server_round) / f"{client}.safetensors", save(arrays))


def load_updates(folder: RunFolder, server_round: int) -> dict[str, Arrays]:
    """Read the clients' updates of a round, by client id; {} if they were not saved.

    Raises:
        UserError: A file is damaged.
    """
    paths = sorted(folder.updates(server_round).glob("*.safetensors"))
    return {path.stem: read_whole(path, load_file) for path in paths}
