"""Every setting explained: key, type, default, meaning, and which choices use it.

Input: the settings' own declarations and docstrings, and the table of who uses what (`compatibility`). For
`fedsdr settings`, the page's table of settings, and shell completion.
"""

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from fedsdr.compatibility import TABLES, as_used
from fedsdr.config import Settings
from fedsdr.config_training import Section
from fedsdr.errors import UserError
from fedsdr.familiar import FAMILIAR
from fedsdr.recipe import flat, type_of

KINDS = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false", "tuple": "array"}
BOUNDS = {Ge: ("at least", "ge"), Gt: ("above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}


@dataclass(frozen=True)
class Row:
    """One setting."""

    key: str
    kind: str
    """Its type, range or choices, described."""
    default: str
    """The default, as TOML."""
    text: str
    """Its meaning."""
    used: str
    """The only choices that use it; "": all."""


def all_rows() -> list[Row]:
    """Every setting, in the order of a recipe."""
    return list(_rows(Settings, ""))


def find_rows(key: str) -> list[Row]:
    """The setting with this key, the settings of this section, or all settings with this last name.

    Raises:
        UserError: There is none; lists the nearest ones.
    """
    rows = all_rows()
    found = [row for row in rows if row.key == key or row.key.startswith(f"{key}.")]
    found = found or [row for row in rows if row.key.endswith(f".{key}")]
    found = found or [row for row in rows if row.key == FAMILIAR.get(key.rpartition(".")[2])]
    if not found:
        names = {row.key for row in rows} | {row.key.partition(".")[0] for row in rows}
        lasts = {name.rpartition(".")[2]: name for name in sorted(names)}
        near = difflib.get_close_matches(key, names) or [
            lasts[name] for name in difflib.get_close_matches(key, lasts)
        ]
        hint = f"did you mean {' or '.join(near)}?" if near else "`fedsdr settings` lists all"
        raise UserError(f"unknown setting {key!r}; {hint}")
    return found


def changed_values(settings: Settings) -> dict[str, Any]:
    """Values by dotted key of the settings that differ from their defaults."""
    usual = dict(flat(Settings().model_dump(mode="json")))
    now = flat(settings.model_dump(mode="json"))
    return {key: value for key, value in now if value != usual.get(key)}


def choices(key: str) -> list[str]:
    """Values of a setting with a few named ones; empty for others."""
    if key in TABLES:
        return list(TABLES[key])
    kind = type_of(key)
    return [str(one) for one in get_args(kind)] if get_origin(kind) is Literal else []


def _rows(section: type[Section], prefix: str) -> Iterator[Row]:
    for name, field in section.model_fields.items():
        key, kind = prefix + name, field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _rows(kind, f"{key}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = json.dumps(list(default) if isinstance(default, tuple) else default, ensure_ascii=False)
        text = " ".join((field.description or "").split())
        yield Row(key, _kind(key, field), shown, text, as_used(key))


def _kind(key: str, field: Any) -> str:
    if named := choices(key):
        return ("several of: " if _is_tuple(field) else "") + ", ".join(named)
    return _described(field.annotation, field.metadata)


def _described(kind: Any, limits: Sequence[Any] = ()) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        return _described(kind.__origin__, kind.__metadata__)
    if origin in (Union, UnionType):
        return " or ".join(map(_described, get_args(kind)))
    if origin is tuple and get_origin(get_args(kind)[0]) is Literal:
        return f"several of: {_described(get_args(kind)[0])}"
    if origin is Literal:
        return " or ".join(map(json.dumps, get_args(kind)))
    limits = [part for one in limits for part in getattr(one, "metadata", [one])]
    bounds = [f"{words} {getattr(one, name):g}" for one in limits
              for bound, (words, name) in BOUNDS.items() if isinstance(one, bound)]  # fmt: skip
    return " ".join([KINDS.get(getattr(origin or kind, "__name__", ""), "table"), *bounds])


def _is_tuple(field: Any) -> bool:
    return get_origin(field.annotation) is tuple
