"""What a client keeps between rounds, versioned by round: an adapter of its own, and other arrays by name.

`<folder>/round-0003/` holds the adapter after round 3, in PEFT's format: the private one, or with fedala the
shared one as this client trained it. In kept.safetensors is whatever else the method, the aggregation, the
drift correction or `communication.dtype` must remember at the client (such as "error_feedback", what its
messages lost). It is written whole. Two versions are kept: a client asked for round k starts
from its newest state before k, even if it had already finished k when the server was killed.

Paper: LoRA-S never leaves the client (FedSDR, section 4). Differs: whether it is kept or reset
between rounds is open in the paper; it is kept.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.numpy import load_file, save
from torch import Tensor

from fedsdr.config import Lora
from fedsdr.messages.wire import Float32
from fedsdr.model.adapter_files import load_adapter, read_whole, save_adapter
from fedsdr.storage import list_rounds, round_folder, write_folder

KEEP = 2
KEPT = "kept.safetensors"


def save_state(
    folder: Path,
    server_round: int,
    private: dict[str, Tensor] | None,
    kept: Mapping[str, Float32],
    lora: Lora,
    base: str,
) -> None:
    """Keep a client's state after a round and drop versions older than the last two."""

    def fill(aside: Path) -> None:
        if private is not None:
            save_adapter(aside, private, lora, base)
        if kept:
            (aside / KEPT).write_bytes(save(dict(kept)))

    write_folder(round_folder(folder, server_round), fill)
    for old in [version for version in list_rounds(folder) if version <= server_round][:-KEEP]:
        shutil.rmtree(round_folder(folder, old))


def load_private(folder: Path, before: int) -> dict[str, Tensor] | None:
    """Newest private adapter of a round before `before`; None if the client has none yet."""
    newest = _newest(folder, before)
    return load_adapter(newest) if newest else None


def load_kept(folder: Path, before: int) -> dict[str, Float32]:
    """What else the client kept of its newest round before `before`, by name; empty at first.

    Raises:
        UserError: The file is damaged.
    """
    newest = _newest(folder, before)
    return read_whole(newest / KEPT, load_file) if newest and (newest / KEPT).exists() else {}


def fusion_file(folder: Path, server_round: int) -> Path:
    """Where a client keeps the weights that fuse its adapters after a round, once it was evaluated."""
    return folder / "evaluation" / f"round-{server_round:04d}-fusion.json"


def _newest(folder: Path, before: int) -> Path | None:
    older = [version for version in list_rounds(folder) if version < before]
    return round_folder(folder, older[-1]) if older else None
