"""Files that are never half-written: atomic files and folders, event logs, content hashes.

A run is a folder (docs/architecture.md). Whatever is needed to go on after a kill is written
aside, flushed and renamed; logs are appended by whole lines and a torn last line is cut when read.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Event = dict[str, Any]


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.aside")
    with aside.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document, indented, by `write_file`."""
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder appear whole: `fill` writes into a folder aside, which is then renamed.

    Args:
        path: The folder; a folder of that name is replaced.
        fill: Writes the content into the folder that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    fill(aside)
    for file in aside.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(path, ignore_errors=True)
    aside.rename(path)


def append_lines(path: Path, records: Iterable[Event]) -> None:
    """Append records to a JSONL file in one write, flushed to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with path.open("ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[Event]:
    """Read a JSONL file that this package wrote; a torn last line, left by a kill, is passed over."""
    if not path.exists():
        return []
    *whole, _torn = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in whole]


def rewrite_lines(path: Path, records: Iterable[Event]) -> None:
    """Replace a JSONL file as a whole."""
    write_file(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def content_hash(*parts: Any) -> str:
    """Hash JSON-able values: 16 hexadecimal digits, equal for equal content."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
