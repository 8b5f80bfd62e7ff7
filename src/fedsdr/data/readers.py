"""From raw rows to examples: which column feeds which field, and what makes a row unusable.

Input: rows from `files`. Output: records, which are examples with the client's id if the data has one.
`sources` assembles domains, and `partition` assigns examples to clients.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fedsdr.config import Reading
from fedsdr.data.examples import Example
from fedsdr.data.files import BadRow, Row, cut, file_rows, parse_json, refuse, refuse_bad
from fedsdr.data.label_names import (
    choices_in_prompt,
    lettered,
    read_choices,
    read_label,
    read_texts,
    whole_text,
)
from fedsdr.data.turns import Exchange, exchanges, history_of
from fedsdr.errors import Problems, UserError

KEYS: Mapping[str, tuple[str, ...]] = {
    "instruction": ("instruction", "prompt"),
    "response": ("output", "response", "completion"),
    "context": ("input", "context"),
    "system": ("system",),
    "history": ("history",),
    "messages": ("messages", "conversations"),
    "label": ("label",),
    "answer": ("answer",),
    "facts": ("facts",),
    "choices": ("choices",),
    "tests": ("tests",),
    "distilled": ("distilled",),
    "client": ("client",),
}
"""Candidate keys of each field, in order of preference; `columns` replaces them."""
NEEDED = ("instruction", "response")
TEXTS = (*NEEDED, "context", "system", "answer", "tests", "distilled", "client")

IN_BRACES = re.compile(r"\{([^{}]+)\}")
"""Placeholder for a column in a template of several columns."""


@dataclass(frozen=True, slots=True)
class Record:
    """An example, its client, and where it was read."""

    example: Example
    client: str = ""
    """Client id from the data; empty if there is none."""
    place: str = field(default="", compare=False)
    """File and line, or the nearest equivalent; empty for built-in data."""


def read_file(
    path: str | Path, domain: str, reading: Reading | None = None, bad: list[BadRow] | None = None
) -> list[Record]:
    """Read the examples of a file, in the file's order.

    Args:
        path: See `files.file_rows`.
        domain: The domain assigned to the examples.
        reading: Selects the rows, and maps columns to fields.
        bad: Collects unusable rows; without it they raise an error.

    Raises:
        UserError: States file and line, what was found, and what was expected.
    """
    found = [] if bad is None else bad
    records = to_records(file_rows(path, found), domain, reading, found)
    if bad is None:
        refuse_bad(found)
    return records


def fill_choices(records: Sequence[Record]) -> list[Record]:
    """Give labels without choices all labels of their domain as choices, since a check needs alternatives.

    Args:
        records: All records of the domains, training and test.
    """
    labels: dict[str, set[str]] = {}
    for record in records:
        labels.setdefault(record.example.domain, set()).update({record.example.label} - {""})
    choices = {domain: tuple(sorted(found)) for domain, found in labels.items()}
    return [
        replace(one, example=replace(one.example, choices=choices[one.example.domain]))
        if one.example.label and not one.example.choices
        else one
        for one in records
    ]


def to_records(
    rows: list[Row], domain: str, reading: Reading | None = None, bad: list[BadRow] | None = None
) -> list[Record]:
    """Validate raw rows and convert them to examples; keys that feed no field are ignored.

    A row with a list of turns is a conversation. It yields one example or, with ``train_on = "all"``, one
    for each answer.

    Args:
        rows: From `files`.
        domain: The domain assigned to the examples.
        reading: Selects the rows, and maps columns to fields.
        bad: Collects unusable rows; without it they raise an error.

    Raises:
        UserError: A field is missing, empty or of the wrong type, or `columns` or `where` names a column
            that does not exist.
    """
    reading, found = reading or Reading(), [] if bad is None else bad
    rows = _select(rows, reading)
    keys = _keys(rows, reading.columns)
    records: list[Record] = []
    for place, row in rows:
        try:
            records += _records(place, row, domain, keys, reading)
        except BadRow as error:
            found.append(error)
    if bad is None:
        refuse_bad(found)
    return records


def _select(rows: list[Row], reading: Reading) -> list[Row]:
    """The rows selected by `where`."""
    for column, wanted in reading.where.items():
        patterns = (wanted,) if isinstance(wanted, str) else wanted
        values = [_plain(_look(row, column)) for _, row in rows]
        chosen = [any(v == pattern or fnmatchcase(v, pattern) for pattern in patterns) for v in values]
        if rows and not any(chosen):
            there = cut(", ".join(sorted(set(values) - {""})) or "nothing", 120)
            raise UserError(
                f"{rows[0][0]}: no row has {column} = {' or '.join(map(repr, patterns))}, which where"
                f" selects; values of {column}: {there}"
            )
        rows = [row for row, is_chosen in zip(rows, chosen, strict=True) if is_chosen]
    return rows


def _keys(rows: list[Row], columns: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Candidate keys of each field.

    A column that `columns` maps to one field no longer feeds another field by its name. The required fields,
    instruction and response, keep their default keys.
    """
    used: set[str] = set()
    missing: dict[str, str] = {}
    problems = Problems()
    if unknown := [name for name in columns if name not in KEYS]:
        names = ", ".join(map(repr, unknown))
        problems.append(UserError(f"columns: unknown field {names}; known fields: {', '.join(KEYS)}"))
    for name, column in columns.items():
        parts = IN_BRACES.findall(column) or ([column] if column else [])
        used.update(part.partition(".")[0] for part in parts)
        for key in parts:
            if rows and not any(key in row or _look(row, key) is not None for _, row in rows):
                missing[key] = name
    if missing:
        place, first = rows[0]
        keys = ", ".join(f"{key!r} (for {name})" for key, name in missing.items())
        found = cut(", ".join(first), 120)
        problems.append(
            UserError(f"{place}: no record has the keys in columns: {keys}; found the keys {found}")
        )
    problems.refuse()
    free = {
        name: tuple(key for key in known if key not in used or name in NEEDED) for name, known in KEYS.items()
    }
    return {**free, **{name: (column,) if column else () for name, column in columns.items()}}


def _records(
    place: str, row: dict[str, Any], domain: str, keys: Mapping[str, tuple[str, ...]], reading: Reading
) -> list[Record]:
    """The examples of a row: one, or one for each trained answer of its conversation."""
    values = _values(place, row, keys)
    said = _conversation(place, values, reading)
    texts, letters = read_choices(place, values["choices"])
    if reading.choices_after and not texts:
        prompt = said[-1].question if said else f"{values['instruction']}\n\n{values['context']}"
        texts = choices_in_prompt(prompt, reading.choices_after)
    label, choices = read_label(place, values["label"], reading.label_names, texts, letters)
    for key in keys["label"]:
        if _look(row, key) not in (
            None,
            label,
        ):  # other fields fed by this column also receive the class name
            values = _values(place, {**row, key: label or None}, keys)
    history = history_of(place, values["history"], "history" in reading.columns)
    if said:
        history = said[-1].history
        values |= {"instruction": said[-1].question, "response": said[-1].answer}
        values["system"] = said[-1].system or values["system"]
    flat = {name: _text(place, name, values[name], name in reading.columns) for name in TEXTS}
    client = flat.pop("client")
    lacking = {
        name: f"{name} is {'missing' if values[name] is None else 'empty'}"
        for name in NEEDED
        if not flat[name].strip()
    }
    if lacking:
        kind, *_ = lacking.values()
        wanted = "; ".join(
            f"{what}; expected text under {' or '.join(keys[name])}" for name, what in lacking.items()
        )
        named = ", ".join(f'{name} = "..."' for name in lacking)
        found = f"found the keys {cut(', '.join(row), 120)}; to use another key, set columns = {{{named}}}"
        raise BadRow(place, kind, f"{wanted}, {found}")
    example = Example(
        domain=domain,
        label=label,
        choices=choices,
        facts=read_texts(place, "facts", values["facts"]),
        history=history,
        **flat,
    )
    earlier = [
        Example(turn.question, turn.answer, domain, system=example.system, history=turn.history)
        for turn in said[:-1]
    ]
    return [Record(each, client, place) for each in (*earlier, example)]


def _conversation(place: str, values: Mapping[str, Any], reading: Reading) -> list[Exchange]:
    """The exchanges of a row that holds a list of turns; [] for a flat row."""
    turns = values["messages"]
    if isinstance(turns, str) and turns.startswith("["):  # in a cell of a CSV file
        turns = parse_json(place, turns)
    prompt, completion = values["instruction"], values["response"]
    if isinstance(prompt, list) and isinstance(completion, list):
        turns = prompt + completion
    elif turns is None or set(NEEDED) & set(reading.columns):
        return []
    return exchanges(place, turns, reading.train_on or "last")


def _values(place: str, row: dict[str, Any], keys: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """The value of each field in a row; None if absent."""
    found = {name: [_value(place, row, name, key) for key in known] for name, known in keys.items()}
    return {name: next((v for v in several if v is not None), None) for name, several in found.items()}


def _value(place: str, row: dict[str, Any], name: str, key: str) -> Any:
    """The value under a key, or the filled-in text if the key is a template with keys in braces."""
    parts = {part: _look(row, part) for part in IN_BRACES.findall(key)}
    if not parts:
        return _look(row, key)
    if any(value is None for value in parts.values()):
        return None
    shown = {part: _shown(place, part, value, name) for part, value in parts.items()}
    return IN_BRACES.sub(lambda found: shown[found[1]], key)


def _shown(place: str, part: str, value: Any, name: str) -> str:
    """A column's value, formatted for a template."""
    if isinstance(value, list | dict):
        return "\n".join(read_texts(place, part, value)) if name == "tests" else lettered(place, value)
    return _plain(value)


def _look(row: dict[str, Any], key: str) -> Any:
    """The value under a key, which may be a path into nested objects and lists: "answers.text.0"."""
    if key in row or "." not in key:
        return row.get(key)
    value: Any = row
    for part in key.split("."):
        if isinstance(value, list):
            value = value[int(part)] if part.isdecimal() and int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _plain(value: Any) -> str:
    """A value as text: whole numbers without a decimal point, booleans as in JSON; "" for None."""
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    # Table formats often store whole numbers as floats; the response says 18, not 18.0.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _text(place: str, name: str, value: Any, is_mapped: bool) -> str:
    if value is None:
        return ""
    if name == "tests" and isinstance(value, list):
        return "\n".join(read_texts(place, name, value))
    if isinstance(value, bool | int | float) and (is_mapped or name in ("answer", "client")):
        if isinstance(value, bool) and not is_mapped:
            hint = (
                f'columns = {{{name} = ""}} switches the field off, columns = {{{name} = "{name}"}} reads it'
            )
            refuse(place, name, value, f"text or a number; {hint} as text")
        if not math.isfinite(value):
            refuse(place, name, value, "a finite number or text")
        return _plain(value)
    if not isinstance(value, str):
        refuse(place, name, value, "text")
    return whole_text(place, name, value)
