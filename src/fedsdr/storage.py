"""Files that are never half-written: atomic files and folders, event logs, locks, content hashes.

A run is a folder (docs/architecture.md). Files needed to resume after a kill are written to a temporary name,
flushed and renamed; logs are appended in whole lines, and an incomplete last line is dropped when read.
Temporary names contain the process number, so that two processes do not mix their files.
"""

import glob
import hashlib
import json
import math
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedsdr.errors import UserError
from fedsdr.progress import say

Event = dict[str, Any]


SECRET = 0o600
"""Mode of a file that only its owner can read."""


def write_file(path: Path, data: bytes | str, mode: int = 0o666) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    On return, the new content is on disk. `mode`, minus the umask, applies from the start.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    aside.unlink(missing_ok=True)  # left by a killed process with this number
    # Exclusively: in a folder writable by others, someone might have placed a link there.
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    _sync(path.parent)  # so that the new name is persistent too


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file that a user wrote.

    Raises:
        UserError: It cannot be read, or is not TOML; quotes the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"line (\d+), column", str(error))
        line = text.split("\n")[int(at[1]) - 1] if at else text.rstrip().split("\n")[-1]
        raise UserError(
            f"{path} cannot be read: {error}: {line.strip()}\nTOML is key = value: each key once, text in"
            " quotes, numbers without"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document, indented, by `write_file`."""
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON document that this package wrote.

    Raises:
        UserError: The file is damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        raise UserError(f"{path}: found no JSON document; expected it as fedsdr wrote it") from None


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Create a folder atomically: `fill` writes into a temporary folder, which is then renamed.

    Args:
        path: The folder; an existing folder of this name is replaced, and temporary remains of a killed
            process are removed. Unlike a file, a folder is never written by two processes at the same time.
        fill: Writes the content into the given folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*.aside"):
        shutil.rmtree(left)
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    aside.mkdir()
    fill(aside)
    for file in (*aside.iterdir(), aside):
        _sync(file)
    shutil.rmtree(path, ignore_errors=True)
    aside.rename(path)
    _sync(path.parent)


@contextmanager
def locked(path: Path, patience: float = math.inf) -> Iterator[None]:
    """Let one process at a time work on a file or in a folder.

    The lock file holds the number of the process, and is removed with the lock. The lock of a killed process
    is free.

    Args:
        path: The file or folder; a file need not exist.
        patience: Seconds to wait for another process.

    Raises:
        UserError: Another process still works on it.
    """
    file = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, fallback_to_soft=False)
    with suppress(Timeout):
        lock.acquire(timeout=0)
    if not lock.is_locked:
        number = ""
        with suppress(FileNotFoundError):  # the other process has just ended
            number = file.read_text()
        other = f"another process ({number or 'of unknown number'}) is working in {path}"
        if patience:
            say(f"  {other}: waiting until it ends")
        try:
            lock.acquire(timeout=-1 if patience == math.inf else patience)
        except Timeout:
            raise UserError(f"{other}; wait for it, or stop it") from None
    try:
        file.write_text(str(os.getpid()))
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: who waits for the removed file takes a new one
        lock.release()


def append_lines(path: Path, records: Iterable[Event]) -> None:
    """Append records to a JSONL file in one write, flushed to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with path.open("ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[Event]:
    """Read a JSONL file that this package wrote; an incomplete last line, left by a kill, is skipped.

    Raises:
        UserError: A whole line is damaged. The message does not show it: it may be a client's data.
    """
    if not path.exists():
        return []
    *whole, _torn = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(whole, start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise UserError(
                f"{path}:{number}: found no JSON; expected a record on each line, as fedsdr wrote it"
            ) from None
    return records


def rewrite_lines(path: Path, records: Iterable[Event]) -> None:
    """Replace a whole JSONL file."""
    write_file(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def content_hash(*parts: Any) -> str:
    """Hash JSON-able values: 16 hexadecimal digits, equal for equal content."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
