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
from fedsdr.storage import list_rounds, round_folder, write_folder

KEEP = 2


def save_private(folder: Path, server_round: int, state: dict[str, Tensor], lora: Lora, base: str) -> None:
    """Keep the private adapter after a round and drop versions older than the last two."""
    write_folder(round_folder(folder, server_round), lambda aside: save_adapter(aside, state, lora, base))
    for old in [version for version in list_rounds(folder) if version <= server_round][:-KEEP]:
        shutil.rmtree(round_folder(folder, old))


def load_private(folder: Path, before: int) -> dict[str, Tensor] | None:
    """Newest private adapter of a round before `before`; None if the client has none yet."""
    older = [version for version in list_rounds(folder) if version < before]
    return load_adapter(round_folder(folder, older[-1])) if older else None
