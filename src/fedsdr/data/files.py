"""Raw rows from files in the usual formats, and from Hugging Face `datasets`.

Input: a path or a hub id. Output: rows, each a dict with its place, such as "train.jsonl:12". `readers`
interprets the columns. Rows that cannot be read are collected, so that they can be reported or counted
together.
"""

import bz2
import csv
import difflib
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fedsdr.errors import Unreachable, UserError

Row = tuple[str, dict[str, Any]]
"""A raw record and where it was read, such as "train.jsonl:12"."""

MOST_NAMED = 10
"""Maximum number of bad rows listed in one message."""
UNPACK: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}


class BadRow(UserError):
    """A row that cannot be used.

    Attributes:
        place: File and line, or the nearest equivalent.
        reason: What is wrong and what was expected.
        kind: A short reason without the row's values; bad rows are counted by it.
    """

    def __init__(self, place: str, kind: str, reason: str):
        super().__init__(f"{place}: {reason}")
        self.place, self.kind, self.reason = place, kind, reason

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        """Pickle by the arguments; an error of a grid's run comes from another process."""
        return type(self), (self.place, self.kind, self.reason)


def refuse_bad(bad: Sequence[BadRow], leaves_some: bool = True) -> None:
    """Raise one error for all bad rows, if there are any; it lists the first ten.

    Args:
        bad: Rows that cannot be used.
        leaves_some: Whether there are examples without them.

    Raises:
        UserError: Lists the place of each row; identical reasons are given once.
    """
    if len(bad) == 1:
        raise bad[0]
    if bad:
        reasons: dict[str, list[str]] = {}
        for row in bad[:MOST_NAMED]:
            reasons.setdefault(row.reason, []).append(row.place)
        more = f"; the first {MOST_NAMED}" if len(bad) > MOST_NAMED else ""
        lines = [f"{', '.join(places)}: {reason}" for reason, places in reasons.items()]
        lines = [f"{len(bad)} rows cannot be used{more}:", *(f"  {line}" for line in lines)]
        if leaves_some:
            lines.append("Correct them, or leave them out: data.skip_bad_rows = true")
        else:
            lines.append(
                "No usable row remains: check the file, and which columns feed the fields (data.columns)"
            )
        raise UserError("\n".join(lines))


def file_rows(path: str | Path, bad: list[BadRow] | None = None) -> list[Row]:
    """Return the raw records of a file, each with its place; blank lines are skipped.

    Args:
        path: A .jsonl (or .ndjson), .json, .csv, .tsv or .parquet file; text may be compressed (.gz, .bz2,
            .xz). Suffixes are case-insensitive.
        bad: Collects malformed rows; without it they raise an error.

    Raises:
        UserError: The file is missing, unreadable, not UTF-8, malformed as a whole, or empty.
    """
    path, found = Path(path), [] if bad is None else bad
    num_before = len(found)
    kind, data = _content(path)
    if kind == ".parquet":
        rows = _parquet_rows(path, data)
    else:
        rows = TEXT_FORMATS[kind](path, _decode(path, data), found)
    if bad is None:
        refuse_bad(found)
    if not rows and len(found) == num_before:
        raise UserError(f"{path}: found no examples; expected at least one")
    return rows


def hub_rows(name: str, split: str, config: str = "", num: int = 0, seed: int = 0) -> list[Row]:
    """Return the raw rows of one split of a Hugging Face data set, each with its place.

    Numbered classes are replaced by their names, with "_" replaced by a space; a number without a name (GLUE
    marks hidden labels by -1) becomes None.

    Args:
        name: A hub id, a folder written by `save_to_disk`, or a folder of data files.
        split: Name of the split.
        config: Configuration name of a hub data set; empty: its default.
        num: Use only this many rows of a shuffled stream, and fetch no more than needed (files, and rows in
            blocks of 1,000, are shuffled); 0: all, in order.
        seed: Seed of the shuffle.

    Raises:
        Unreachable: The package `datasets` is missing, or the data set cannot be downloaded.
        UserError: A folder cannot be read, or the split is unknown or empty.
    """
    try:
        import datasets
    except ImportError:
        raise Unreachable(
            f"{name}: reading it requires the package datasets: pip install 'fedsdr[hub]'"
        ) from None
    saved = any((Path(name) / file).exists() for file in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config or None, streaming=num > 0)
        # A set saved alone remembers the split that it came from, or has none.
        splits = loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
        if split not in splits:
            raise UserError(f"data set {name} has no split {split!r}; its splits: {', '.join(splits)}")
        part = splits[split].shuffle(seed=seed).take(num) if num else splits[split]
        rows = _named_classes(f"{name}, split {split}", part, part.features or {})
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = f"data set {name} cannot be loaded: {cut(str(error), 120)}"
        if Path(name).is_dir():
            raise UserError(reason) from None
        raise Unreachable(f"{reason}; to use a local copy, set `train = ...` in the source") from None
    if not rows:
        raise UserError(f"data set {name}, split {split}: found no examples; expected at least one")
    return rows


def is_known_format(path: Path) -> bool:
    """Whether the suffix is one that `file_rows` reads."""
    kind, _ = _kind(path)
    return kind in TEXT_FORMATS or kind == ".parquet"


def cut(value: Any, length: int = 60) -> str:
    """Shorten a value for an error message or a sample, with white space collapsed."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."


def parse_json(place: str, text: str) -> Any:
    """Parse JSON strictly: NaN and duplicate keys are errors.

    Raises:
        BadRow: The text is not valid JSON.
    """
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, " if error.lineno > 1 else ""
        found = cut(text[error.pos :]) or f"the end after {cut(text.strip()[-60:])}"
        raise BadRow(
            place,
            "not JSON",
            f"not JSON ({error.msg}, {where}character {error.colno}), found {found};"
            " expected one object a line in .jsonl, a list of objects in .json",
        ) from None
    except ValueError as error:
        raise BadRow(place, "not JSON", f"not JSON ({cut(str(error))})") from None
    except RecursionError:
        raise BadRow(place, "not JSON", "not JSON that can be read: nested too deeply") from None


def refuse(place: str, what: str, found: Any, expected: str) -> NoReturn:
    """Raise a `BadRow` that reports what was found and what was expected."""
    kind = type(found).__name__
    raise BadRow(place, f"{what} of a wrong kind", f"{what}: found {kind} {cut(found)}; expected {expected}")


def _kind(path: Path) -> tuple[str, str]:
    """Suffixes of the format and of the compression, in lower case."""
    *_, before, last = "", "", *(suffix.lower() for suffix in path.suffixes)
    return (before, last) if last in UNPACK else (last, "")


def _content(path: Path) -> tuple[str, bytes]:
    """Format of a file and its decompressed bytes."""
    if not path.exists():
        items = path.parent.iterdir() if path.parent.is_dir() else []
        beside = sorted(item.name for item in items if is_known_format(item))
        near = [name for name in beside if path.stem and name.startswith(path.stem)]
        near = near or difflib.get_close_matches(path.name, beside, n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"{path}: there is no such file{hint}")
    kind, packing = _kind(path)
    if not is_known_format(path):
        known = ", ".join([*TEXT_FORMATS, ".parquet"])
        raise UserError(f"{path}: unknown kind of file {kind!r}; expected {known}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a file of examples") from None
    try:
        return kind, UNPACK[packing](data) if packing else data
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: cannot be decompressed ({error}); expected a {packing} file") from None


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = data[error.start : error.start + 4].hex(" ")
        raise UserError(f"{path}:{line}: found the bytes {found}; expected text in UTF-8") from None


def _jsonl_rows(path: Path, text: str, bad: list[BadRow]) -> list[Row]:
    rows: list[Row] = []
    # Not splitlines: it also splits at separators that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                rows.append((place, _object(place, parse_json(place, line))))
            except BadRow as error:
                bad.append(error)
    return rows


def _json_rows(path: Path, text: str, bad: list[BadRow]) -> list[Row]:
    try:
        values = parse_json(str(path), text) if text.strip() else []
    except BadRow as error:
        if "Extra data" in error.reason and text.lstrip().startswith("{"):  # one object a line after all
            return _jsonl_rows(path, text, bad)
        raise
    if not isinstance(values, list):
        refuse(str(path), "the file", values, "a list of objects")
    rows: list[Row] = []
    for number, value in enumerate(values, start=1):
        place = f"{path}, record {number}"
        try:
            rows.append((place, _object(place, value)))
        except BadRow as error:
            bad.append(error)
    return rows


def _csv_rows(path: Path, text: str, bad: list[BadRow]) -> list[Row]:
    first = text.partition("\n")[0]
    # In locales with a decimal comma, spreadsheets separate cells by semicolons.
    return _table_rows(path, text, bad, ";" if ";" in first and "," not in first else ",")


def _tsv_rows(path: Path, text: str, bad: list[BadRow]) -> list[Row]:
    return _table_rows(path, text, bad, "\t")


def _table_rows(path: Path, text: str, bad: list[BadRow], delimiter: str) -> list[Row]:
    csv.field_size_limit(sys.maxsize)  # process-wide; the default limit is 131,072 characters a cell
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        if "" in header or len(set(header)) < len(header):
            refuse(f"{path}:1", "the header", header, "a name for each column, without duplicates")
        last = reader.line_num
        for cells in reader:
            place, last = f"{path}:{last + 1}", reader.line_num
            if cells and len(cells) != len(header):
                reason = f"found {len(cells)} cells; expected {len(header)}, as in line 1"
                bad.append(BadRow(place, "wrong number of cells", reason))
            elif cells:
                rows.append((place, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error})") from None
    return rows


TEXT_FORMATS: Mapping[str, Callable[[Path, str, list[BadRow]], list[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
}


def _parquet_rows(path: Path, data: bytes) -> list[Row]:
    try:
        import datasets
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise Unreachable(
            f"{path}: reading parquet requires the package pyarrow, which comes with datasets:"
            " pip install 'fedsdr[hub]'"
        ) from None
    try:
        table = parquet.read_table(pyarrow.BufferReader(data))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not parquet ({cut(str(error))})") from None
    return _named_classes(str(path), table.to_pylist(), datasets.Features.from_arrow_schema(table.schema))


def _named_classes(place: str, rows: Any, features: Mapping[str, Any]) -> list[Row]:
    """Rows with their places, with numbered classes replaced by their names."""
    import datasets

    classes = {
        column: [label.replace("_", " ") for label in feature.names]
        for column, feature in features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    return [
        (f"{place}, row {n}", row | {key: class_name(row[key], names) for key, names in classes.items()})
        for n, row in enumerate(rows, start=1)
    ]


def class_name(number: int | None, names: Sequence[str]) -> str | None:
    """Name of a numbered class; None if the number is missing or marks a hidden label (-1)."""
    return None if number is None or number < 0 else names[number]


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON value")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return values


def _object(place: str, value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else refuse(place, "the record", value, "an object")
