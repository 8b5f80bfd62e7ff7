"""What a client keeps between rounds: its private adapter, versioned by round.

`<folder>/round-0003/` holds the adapter after round 3, in PEFT's format, written whole. Two
versions are kept: a client asked for round k starts from its newest state before k, even if it had
already finished k when the server was killed.

Paper: LoRA-S never leaves the client (FedSDR, section 4). Differs: whether it is kept or reset
between rounds is open in the paper; it is kept.
"""

import shutil
from pathlib import Path

from torch import Tensor

from fedsdr.config import Lora
from fedsdr.model.adapter_files import load_adapter, save_adapter
from fedsdr.storage import write_folder

KEEP = 2


def save_private(
    folder: Path, server_round: int, state: dict[str, Tensor], lora: Lora, targets: list[str], base: str
) -> None:
    """Keep the private adapter after a round and drop versions older than the last two."""
    write_folder(
        folder / f"round-{server_round:04d}", lambda aside: save_adapter(aside, state, lora, targets, base)
    )
    for old in sorted(version for version in _versions(folder) if version <= server_round)[:-KEEP]:
        shutil.rmtree(folder / f"round-{old:04d}")


def load_private(folder: Path, before: int) -> dict[str, Tensor] | None:
    """Newest private adapter of a round before `before`; None if the client has none yet."""
    older = [version for version in _versions(folder) if version < before]
    return load_adapter(folder / f"round-{max(older):04d}") if older else None


def _versions(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("round-")) for path in folder.glob("round-[0-9]*")]
