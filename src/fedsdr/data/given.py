"""Examples passed as Python objects: saved with the run, then read like any other file."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedsdr.data.sources import check_name
from fedsdr.errors import UserError
from fedsdr.storage import write_file

Rows = Iterable[Mapping[str, Any]]
"""Dicts with keys as in a JSONL file; a `datasets.Dataset` qualifies."""
ClientRows = Rows | tuple[Rows, Rows]
"""The training rows of a client, or its training and test rows."""


def save_rows(given: Mapping[str, ClientRows], folder: Path) -> list[dict[str, str]]:
    """Write each client's rows to <folder>/<client>/train.jsonl, and test.jsonl if it has test rows.

    Returns:
        `data.sources`, with one domain for each client.

    Raises:
        UserError: A client's id cannot name a folder, or a row is not JSON.
    """
    sources = []
    for client, rows in given.items():
        source = {"domain": check_name(client, "client")}
        parts = (
            dict(zip(("train", "test"), rows, strict=True)) if isinstance(rows, tuple) else {"train": rows}
        )
        for name, part in parts.items():
            path = folder / client / f"{name}.jsonl"
            write_file(path, "".join(_line(row, client, name, at) for at, row in enumerate(part)))
            source[name] = str(path)
        sources.append(source)
    return sources


def _line(row: Any, client: str, name: str, at: int) -> str:
    try:
        return json.dumps(dict(row), ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(
            f"data: {name} row {at} of client {client!r}: {error}; expected a dict of text, numbers and"
            ' lists, such as {"instruction": "...", "output": "..."}'
        ) from None
