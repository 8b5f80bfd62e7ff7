"""What a client saves between rounds, versioned by round: its own adapter, and other arrays by name.

`<folder>/round-0003/` holds the adapter after round 3, in PEFT's format: the private one, or with fedala the
shared one as this client trained it. kept.safetensors holds the rest of the state that the method, the
aggregation, the drift correction or `communication.dtype` needs at the client (such as "error_feedback", the
rounding error of its messages). The folder is written atomically. Two versions are kept: a client that is
sampled for round k starts from its newest state before k, even if it had finished k when the server was
killed.

Paper: LoRA-S never leaves the client (FedSDR, section 4). Differs: the paper leaves open whether it is saved
or reset between rounds; here it is saved.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.numpy import load_file, save
from torch import Tensor

from fedsdr.config import Lora
from fedsdr.messages.wire import Arrays, Float32
from fedsdr.model.adapter_files import load_adapter, read_whole, save_adapter
from fedsdr.rows import Aggregation
from fedsdr.run_folder import list_rounds, round_folder
from fedsdr.storage import write_folder

NUM_VERSIONS = 2
ARRAYS = "kept.safetensors"


@dataclass(frozen=True)
class State:
    """What a client saves after a round."""

    adapter: Mapping[str, Tensor] | None = None
    """The client's own adapter, by PEFT key; None if the method has none, or before the first round."""
    arrays: Mapping[str, Float32] = field(default_factory=dict)
    """By name, or by PEFT key if the aggregation keeps a factor at the client."""

    def kept(self, aggregation: Aggregation) -> Arrays:
        """The tensors of the shared adapter that this aggregation keeps at the client, by PEFT key."""
        return {key: value for key, value in self.arrays.items() if aggregation.keeps(key)}


def save_state(folder: Path, server_round: int, state: State, lora: Lora, base: str) -> None:
    """Save a client's state after a round and delete versions older than the last two.

    Args:
        folder: The client's folder.
        server_round: The round.
        state: Its adapter and arrays; if both are empty, nothing is written.
        lora: Shape of the adapter.
        base: Public name of the base model.
    """
    if state.adapter is None and not state.arrays:
        return

    def fill(aside: Path) -> None:
        if state.adapter is not None:
            save_adapter(aside, dict(state.adapter), lora, base)
        if state.arrays:
            (aside / ARRAYS).write_bytes(save(dict(state.arrays)))

    write_folder(round_folder(folder, server_round), fill)
    for old in [version for version in list_rounds(folder) if version <= server_round][:-NUM_VERSIONS]:
        shutil.rmtree(round_folder(folder, old))


def load_state(folder: Path, before: int, has_adapter: bool) -> State:
    """Read the state after the client's newest round before `before`; empty if there is none.

    Args:
        folder: The client's folder.
        before: A round.
        has_adapter: Whether the client has its own adapter (`Method.has_personal`).

    Raises:
        UserError: A file is damaged, or the adapter is missing.
    """
    older = [version for version in list_rounds(folder) if version < before]
    if not older:
        return State()
    newest = round_folder(folder, older[-1])
    arrays = read_whole(newest / ARRAYS, load_file) if (newest / ARRAYS).exists() else {}
    return State(load_adapter(newest) if has_adapter else None, arrays)


def is_forgotten(folder: Path, before: int) -> bool:
    """Whether states are kept, but none from before a round: the server went back further than they reach."""
    versions = list_rounds(folder)
    return len(versions) == NUM_VERSIONS and versions[0] >= before
