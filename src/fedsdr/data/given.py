"""Examples passed as Python objects: saved with the run, then read like any other file."""

import json
from collections.abc import Iterable, Iterator, Mapping
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
        UserError: There is no client, its id cannot name a folder, or a row is not a dict of JSON.
    """
    if not isinstance(given, Mapping) or not given:
        found = "no client" if isinstance(given, Mapping) else f"found a {type(given).__name__}"
        raise UserError(f'data: {found}; expected client id -> rows, such as {{"north": [...]}}')
    sources = []
    for client, rows in given.items():
        if not isinstance(client, str):
            raise UserError(f"data: client {client!r} is a {type(client).__name__}; expected text")
        source = {"domain": check_name(client, "client")}
        parts = rows if isinstance(rows, tuple) else (rows,)
        if len(parts) not in (1, 2):
            raise UserError(
                f"data: client {client!r}: found {len(parts)} parts; expected training rows, or a pair of"
                " training and test rows"
            )
        for name, part in zip(("train", "test"), parts, strict=False):
            path = folder / client / f"{name}.jsonl"
            write_file(path, "".join(_lines(part, client, name)))
            source[name] = str(path)
        sources.append(source)
    return sources


def _lines(part: Any, client: str, name: str) -> Iterator[str]:
    for at, row in enumerate(part if isinstance(part, Iterable) else [part]):
        if not isinstance(row, Mapping):
            raise UserError(
                f"data: {name} row {at} of client {client!r} is a {type(row).__name__}, of a"
                f" {type(part).__name__}; expected a dict. For a DataFrame pass df.to_dict('records'), for a"
                " DatasetDict (ds['train'], ds['test'])"
            )
        yield _line(row, client, name, at)


def _line(row: Mapping[str, Any], client: str, name: str, at: int) -> str:
    try:
        return json.dumps(dict(row), ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(
            f"data: {name} row {at} of client {client!r}: {error}; expected a dict of text, numbers and"
            ' lists, such as {"instruction": "...", "output": "..."}'
        ) from None
