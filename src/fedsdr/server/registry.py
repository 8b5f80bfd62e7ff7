"""The keys that `fedsdr deploy register` bound to names of clients."""

from pathlib import Path

from fedsdr.errors import UserError
from fedsdr.storage import read_json


def registered(folder: str) -> dict[str, tuple[int, str]]:
    """Client -> id of the node with its key, and the key; {} without a folder.

    Raises:
        UserError: It contains a file not written by `fedsdr deploy register`.
    """
    nodes: dict[str, tuple[int, str]] = {}
    for path in sorted(Path(folder).glob("*.json")) if folder else ():
        try:
            kept = read_json(path)
        except FileNotFoundError:  # just removed
            continue
        except UserError:  # rejected below, with instructions
            kept = None
        if not isinstance(kept, dict) or (type(kept.get("node-id")), type(kept.get("key"))) != (int, str):
            raise UserError(
                f"{path}: no node-id and key in the format of `fedsdr deploy register`; restore the file"
                " from a backup, or delete it: its client must then create a new key"
            )
        nodes[path.stem] = kept["node-id"], kept["key"]
    return nodes
