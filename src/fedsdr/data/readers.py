"""Read instruction examples from files and from Hugging Face `datasets`.

In: a .jsonl, .json or .csv file, a data set folder or a hub id. Out: records, which are examples with
the client's id where the data carries one. Reading has two steps: `file_rows` or `hub_rows` give raw
rows with their places, `to_records` checks them and makes examples. What a set of domains is, and who
holds which example, is decided in `sources` and `partition`.
"""

import csv
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from fedsdr.data.examples import Example
from fedsdr.errors import Unreachable, UserError

Row = tuple[str, dict[str, Any]]
"""A raw record and its place, such as "train.jsonl:12"."""

KEYS: Mapping[str, tuple[str, ...]] = {
    "instruction": ("instruction",),
    "response": ("output", "response"),
    "context": ("input", "context"),
    "system": ("system",),
    "label": ("label",),
    "answer": ("answer",),
    "facts": ("facts",),
    "choices": ("choices",),
    "tests": ("tests",),
    "client": ("client",),
}
"""The keys under which each field is looked for, in this order; `columns` replaces them."""

ROLES = {"system": "system", "user": "instruction", "assistant": "output"}
IN_BRACES = re.compile(r"\{([^{}]+)\}")
"""A column's place in a text that is made of several."""
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Record:
    """An example and who holds it."""

    example: Example
    client: str = ""
    """Id of the client that the data names; empty where it names none."""


def read_file(path: str | Path, domain: str, columns: Mapping[str, str] = NO_COLUMNS) -> list[Record]:
    """Read the examples of a file, in the file's order.

    Args:
        path: A .jsonl file (one object a line), a .json file (a list of objects) or a .csv file (with a
            header).
        domain: The domain that the examples get.
        columns: Which key of the file feeds which field, such as ``{"response": "answer"}``, or a text
            with keys in braces, ``{"context": "{title}: {body}"}``.

    Raises:
        UserError: With file and line, what was found there, and what was expected.
    """
    return to_records(file_rows(path), domain, columns)


def file_rows(path: str | Path) -> list[Row]:
    """Return the raw records of a file, each with its place; blank lines are passed over.

    Raises:
        UserError: The file cannot be read, is not UTF-8, is malformed, or holds no record.
    """
    path = Path(path)
    formats = {".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows}
    if path.suffix not in formats:
        raise UserError(f"{path}: unknown kind of file {path.suffix!r}; expected {', '.join(formats)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a file of examples") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = data[error.start : error.start + 4].hex(" ")
        raise UserError(f"{path}:{line}: found the bytes {found}; expected text in UTF-8") from None
    rows = formats[path.suffix](path, text)
    if not rows:
        raise UserError(f"{path}: found no example; expected at least one")
    return rows


def hub_rows(name: str, split: str, config: str = "") -> list[Row]:
    """Return the raw rows of one split of a Hugging Face data set, each with its place.

    Classes that the set numbers become their names, "_" in them a space; one without a name (GLUE marks
    hidden labels by -1) becomes None.

    Args:
        name: A hub id, a folder written by `save_to_disk`, or a folder of data files.
        split: Name of the split.
        config: Configuration name of a hub data set; empty: its default.

    Raises:
        Unreachable: The package is missing, or a hub data set cannot be had.
        UserError: A folder cannot be read, or the split is unknown or empty.
    """
    try:
        import datasets
    except ImportError:
        raise Unreachable(
            f"{name}: reading it needs the package datasets: pip install 'fedsdr[hub]'"
        ) from None
    saved = any((Path(name) / file).exists() for file in ("dataset_dict.json", "state.json"))
    try:
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = f"data set {name} cannot be loaded: {cut(str(error), 120)}"
        if Path(name).is_dir():
            raise UserError(reason) from None
        raise Unreachable(f"{reason}; a local copy can be named by `train = ...` of the source") from None
    # A set saved alone remembers the split that it came from, or has none.
    splits = loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    if split not in splits:
        raise UserError(f"data set {name} has no split {split!r}; its splits: {', '.join(splits)}")
    classes = {
        column: [label.replace("_", " ") for label in feature.names]
        for column, feature in splits[split].features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    rows = [
        (f"{name}, split {split}, row {n}", row | {key: _class(row[key], classes[key]) for key in classes})
        for n, row in enumerate(splits[split], start=1)
    ]
    if not rows:
        raise UserError(f"data set {name}, split {split}: found no example; expected at least one")
    return rows


def to_records(rows: list[Row], domain: str, columns: Mapping[str, str] = NO_COLUMNS) -> list[Record]:
    """Check raw rows and make examples of them; keys that feed no field are ignored.

    The first row decides for all whether they are in messages form or in flat (Alpaca) form.

    Args:
        rows: At least one row, as from `file_rows` or `hub_rows`.
        domain: The domain that the examples get.
        columns: Which key feeds which field.

    Raises:
        UserError: A field is missing, empty or of the wrong type, or `columns` names what is not there.
    """
    place, first = rows[0]
    for field, column in columns.items():
        if field not in KEYS:
            raise UserError(f"columns: unknown field {field!r}; known fields: {', '.join(KEYS)}")
        for key in IN_BRACES.findall(column) or [column]:
            if not any(key in row for _, row in rows):
                raise UserError(
                    f"{place}: no record has the key {key!r} that columns names for {field};"
                    f" found the keys {cut(', '.join(first))}"
                )
    keys = {**KEYS, **{field: (column,) for field, column in columns.items()}}
    if "messages" in first and not {"instruction", "response"} & set(columns):
        rows = [(place, _flatten(place, row)) for place, row in rows]
    return [_record(place, row, domain, keys) for place, row in rows]


def cut(value: Any, length: int = 60) -> str:
    """Shorten a value for an error message or a sample, white space folded."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."


def _jsonl_rows(path: Path, text: str) -> list[Row]:
    # Not splitlines: it also cuts at separators that JSON allows inside a string.
    lines = ((f"{path}:{n}", line) for n, line in enumerate(text.split("\n"), start=1))
    return [(place, _object(place, _parse(place, line))) for place, line in lines if line.strip()]


def _json_rows(path: Path, text: str) -> list[Row]:
    values = _parse(str(path), text) if text.strip() else []
    if not isinstance(values, list):
        _refuse(str(path), "the file", values, "a list of objects")
    places = [f"{path}, record {n}" for n in range(1, len(values) + 1)]
    return [(place, _object(place, value)) for place, value in zip(places, values, strict=True)]


def _csv_rows(path: Path, text: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        if "" in header or len(set(header)) < len(header):
            _refuse(f"{path}:1", "the header", header, "a name for each column, no name twice")
        last = reader.line_num
        for cells in reader:
            place, last = f"{path}:{last + 1}", reader.line_num
            if cells and len(cells) != len(header):
                raise UserError(f"{place}: found {len(cells)} cells; expected {len(header)}, as in line 1")
            if cells:
                rows.append((place, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error})") from None
    return rows


def _parse(place: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, " if error.lineno > 1 else ""
        found = cut(text[error.pos :]) or f"the end after {cut(text.strip()[-60:])}"
        raise UserError(
            f"{place}: not JSON ({error.msg}, {where}character {error.colno}), found {found};"
            " expected one object a line in .jsonl, a list of objects in .json"
        ) from None
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({cut(str(error))})") from None
    except RecursionError:
        raise UserError(f"{place}: not JSON that can be read: nested too deeply") from None


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON value")


def _object(place: str, value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else _refuse(place, "the record", value, "an object")


def _flatten(place: str, row: dict[str, Any]) -> dict[str, Any]:
    """Turn the messages form into the flat form."""
    turns = row.get("messages")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        _refuse(place, "messages", turns, "a list of objects with role and content")
    roles = [turn.get("role") for turn in turns]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        _refuse(
            place,
            "roles",
            roles,
            "system (optional), user, assistant; multi-turn conversations are not supported",
        )
    return {**row, **{ROLES[turn["role"]]: turn.get("content") for turn in turns}}


def _record(place: str, row: dict[str, Any], domain: str, keys: Mapping[str, tuple[str, ...]]) -> Record:
    found = {field: (_value(row, key) for key in names) for field, names in keys.items()}
    values = {field: next((v for v in several if v is not None), None) for field, several in found.items()}
    texts = {field: _text(place, field, values[field]) for field in keys if field not in ("facts", "choices")}
    for field in ("instruction", "response"):
        if not texts[field].strip():
            what = "missing" if values[field] is None else "empty"
            raise UserError(
                f"{place}: {field} is {what}; expected text under {' or '.join(keys[field])}, found the keys"
                f' {cut(", ".join(row))}; another key is named by columns = {{{field} = "..."}}'
            )
    client = texts.pop("client")
    facts, choices = (_texts(place, field, values[field]) for field in ("facts", "choices"))
    if choices and texts["label"] and texts["label"] not in choices:
        _refuse(place, "label", texts["label"], f"one of the choices {cut(list(choices))}")
    return Record(Example(domain=domain, facts=facts, choices=choices, **texts), client)


def _value(row: dict[str, Any], key: str) -> Any:
    """What a row holds under a key, or the text that it makes of a key with others in braces."""
    named = IN_BRACES.findall(key)
    if any(row.get(name) is None for name in named):
        return None
    return IN_BRACES.sub(lambda name: str(row[name[1]]), key) if named else row.get(key)


def _class(number: int | None, names: list[str]) -> str | None:
    return None if number is None or number < 0 else names[number]


def _text(place: str, field: str, value: Any) -> str:
    if value is None:
        return ""
    if field in ("answer", "client") and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            _refuse(place, field, value, "a finite number or text")
        # Tables often turn whole numbers into floats; the response says 18, not 18.0.
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if not isinstance(value, str):
        _refuse(place, field, value, "text")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        _refuse(place, field, ascii(value), "text in UTF-8, but half of a surrogate pair is missing")
    return value


def _texts(place: str, field: str, value: Any) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, str) and value.startswith("["):
        # A cell of a CSV file holds a list as JSON.
        value = _parse(f"{place}, {field}", value)
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        _refuse(place, field, value, "a list of texts, none of them empty")
    return tuple(_text(place, field, item) for item in value)


def _refuse(place: str, what: str, found: Any, expected: str) -> NoReturn:
    raise UserError(f"{place}: {what}: found {type(found).__name__} {cut(found)}; expected {expected}")
