"""Recipes: a TOML file plus dotted overrides becomes `Settings`, and these become TOML again.

A recipe holds only what differs from the defaults in `config`, or from another recipe that it begins with.
An unknown key, a wrong type or a value out of range is a `UserError` that names the key, the value and how to
fix it.
"""

import difflib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import tomli_w
from pydantic import ValidationError

from fedsdr.config import SAVED, Section, Settings, Source
from fedsdr.errors import UserError
from fedsdr.familiar import FAMILIAR
from fedsdr.storage import read_toml

RENAMED = {
    "server.combination": "server.aggregation",
    "server.reduction": "server.robust",
    "client.correction": "client.drift_correction",
    "distill.cache": "run.cache",
    "wire": "communication",
    "wire.dtype": "communication.dtype",
    "personal": "feddpa, fdlora or fedala, the section of the method",
    "personal.before_steps": "fdlora.before_steps",
    "personal.num_examples": "feddpa.num_examples or fdlora.num_examples",
    "personal.max_weight": "feddpa.max_weight",
    "personal.num_evaluations": "fdlora.num_evaluations",
    "personal.share": "fedala.share",
    "personal.rate": "fedala.rate",
    "model.checkpointing": "model.gradient_checkpointing",
    "privacy.clip": "privacy.clipping_norm",
    "privacy.noise": "privacy.noise_multiplier",
    "privacy.budget": "privacy.max_epsilon",
    "eval.on": "eval.split",
}
"""Renamed settings of earlier versions: an error in a recipe, read in a saved run."""

RENAMED_VALUES = {
    ("server.robust", "mean"): "none",
    ("client.drift_correction", "proximal"): "fedprox",
}
"""Renamed values of earlier versions."""


def load_settings(recipe: str | Path | None, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Settings:
    """Read a recipe and apply overrides.

    Paths in the recipe are relative to the working directory, as in the command shown in its header. A recipe
    with a key `recipe` starts from the settings of that recipe: its own keys take precedence, and an array,
    such as `data.sources`, replaces the other's.

    Args:
        recipe: A TOML file, or None for the defaults.
        overrides: Values by dotted key, or strings such as ``client.learning_rate=1e-4``. The value of a
            string is parsed as TOML, a list also as bare words (``[law,math]``, ``law,math``), or taken as
            plain text if it is neither or the setting is text.

    Raises:
        UserError: The file cannot be read, or a key or value is not allowed.
    """
    values = _read_recipe(Path(recipe)) if recipe is not None else {}
    changes = overrides if isinstance(overrides, Mapping) else dict(map(_read_word, overrides))
    for key, value in changes.items():
        _override(values, key, value)
    source = str(recipe) if recipe else "defaults"
    if changes:
        source += " with " + " ".join(f"{key}={value}" for key, value in changes.items())
    settings = check_settings(values, source)
    if not settings.run.dir:
        stem = Path(recipe).stem if recipe else "run"
        name = f"runs/{stem}-{settings.method}-seed{settings.run.seed}"
        settings = settings.model_copy(update={"run": settings.run.model_copy(update={"dir": name})})
    return settings


def saved_settings(path: Path) -> Settings:
    """Settings that a run saved, of an earlier version too: under today's names.

    Raises:
        UserError: As `load_settings`, but for settings that the run does not use.
    """
    values = _read_recipe(path)
    _rename(values)
    return check_settings(values, str(path), is_saved=True)


def _rename(values: dict[str, Any]) -> None:
    """Move the values of a saved run to the names of today."""
    for old, new in RENAMED.items():
        table, _, name = old.rpartition(".")
        if name not in values.get(table, {}):
            continue
        value, keys = values[table].pop(name), new.split(" or ")
        for key in keys:
            # Of two methods that shared a setting, the run used at most one.
            if len(keys) == 1 or key.startswith(f"{values.get('method')}."):
                _override(values, key, value)
        if not values[table]:
            del values[table]
    for (key, was), now in RENAMED_VALUES.items():
        table, _, name = key.partition(".")
        if values.get(table, {}).get(name) == was:
            values[table][name] = now


def as_settings(settings: Settings | str | Path | Mapping[str, Any]) -> Settings:
    """Settings, returned unchanged, read from a recipe, or built from values by dotted key with `recipe`.

    Raises:
        UserError: As `load_settings`.
    """
    if isinstance(settings, Settings):
        return settings
    if isinstance(settings, Mapping):
        values = dict(settings)
        return load_settings(values.pop("recipe", None), values)
    return load_settings(settings)


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """A checked copy with other values by dotted key.

    Raises:
        UserError: As `load_settings`.
    """
    changed = settings.model_dump(mode="json")
    for key, value in values.items():
        _override(changed, key, value)
    return check_settings(changed, "settings")


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested tables as dotted keys; an empty one is a value."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def requested_settings(run_config: Mapping[str, Any]) -> Settings:
    """Settings in the configuration of a Flower run (`flwr run . --run-config ...`).

    Args:
        run_config: `settings` as JSON, which wins, or `recipe`, a path, and `overrides`, words with spaces
            between them.

    Raises:
        UserError: As `load_settings`.
    """
    if text := run_config.get("settings"):
        return check_settings(json.loads(str(text)), source="run configuration")
    words = shlex.split(str(run_config.get("overrides", "")))
    return load_settings(str(run_config.get("recipe", "")) or None, words)


def _read_recipe(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Values of a recipe and of the one it starts from; `above` are the recipes that start from it."""
    if path in above:
        raise UserError(f"recipe {path} begins with itself; remove its key recipe")
    if not path.exists():
        near = difflib.get_close_matches(str(path), [str(p) for p in Path("recipes").glob("**/*.toml")])
        hint = f"; did you mean {near[0]}?" if near else ""
        hint = "; the recipe comes first, settings after it" if "=" in path.name else hint
        user = f", with which {above[-1]} begins," if above else ""
        raise UserError(f"recipe {path}{user} does not exist{hint}")
    values = read_toml(path)
    if {"vary", "arms"} & values.keys():
        raise UserError(f"{path} is a grid of runs: give it to `fedsdr compare {path}`")
    if "recipe" not in values:
        return values
    under = _read_recipe(Path(str(values.pop("recipe"))), (*above, path))
    return _merged(under, values)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge tables key by key; values in `over` take precedence."""
    both = {
        key: _merged(under[key], over[key])
        for key in under.keys() & over.keys()
        if isinstance(under[key], dict) and isinstance(over[key], dict)
    }
    return under | over | both


def check_settings(values: dict[str, Any], source: str, is_saved: bool = False) -> Settings:
    """Turn nested values into `Settings`.

    Args:
        values: Tables and keys as in a recipe.
        source: Where they come from, for the message.
        is_saved: As in `compatibility.check`.

    Raises:
        UserError: With one line for each key that is wrong.
    """
    old = [one for one in flat(values) if isinstance(one[1], str) and one in RENAMED_VALUES]
    if old:
        renamed = (f"{key} = {value!r} is now {RENAMED_VALUES[key, value]!r}" for key, value in old)
        raise UserError(f"{source}: " + "\n".join(renamed))
    try:
        return Settings.model_validate(_as_tuples(values), context=SAVED if is_saved else None)
    except ValidationError as error:
        lines = {_key(problem): "" for problem in error.errors()}
        for problem in error.errors():  # a key with two allowed types has two
            line = lines[_key(problem)]
            lines[_key(problem)] = f"{line}, or {_expected(problem)}" if line else _explain(problem)
        raise UserError(f"{source}: " + "\n".join(lines.values())) from None


def dump_settings(settings: Settings) -> str:
    """Write settings as TOML, every key included."""
    return tomli_w.dumps(settings.model_dump(mode="json"))


def _read_word(word: str) -> tuple[str, Any]:
    """Key and value of an override."""
    key, equals, text = word.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"override {word!r} is not of the form key=value, such as run.seed=1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        # A shell removes the quotes of ["tensorboard"]; one word stands for a list of one.
        bare = r"[\w./+-]+(, ?[\w./+-]+)*"
        is_list = re.fullmatch(rf"\[{bare}\]", text) or (_is_list(key) and re.fullmatch(bare, text))
        value = re.split(", ?", text.strip("[]")) if is_list else text
    # 2024 and 1e5 may also be folder names.
    return key, text if _is_text(key) and not isinstance(value, str) else value


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for depth, table in enumerate(tables):
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise UserError(f"override {key} = {value!r}: {'.'.join(tables[: depth + 1])} is not a table")
    values[last] = str(value) if isinstance(value, Path) else value


def _as_tuples(value: Any, key: str = "") -> Any:
    """Convert TOML's lists, and one word in place of a list, to tuples, since settings are frozen."""
    if isinstance(value, dict):
        return {name: _as_tuples(item, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, str) and _is_list(key):
        return (value,)
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def _key(problem: Any) -> str:
    """Dotted key of an error; without pydantic's names of type alternatives."""
    return ".".join(str(part) for part in problem["loc"] if "[" not in str(part))


def _explain(problem: Any) -> str:
    """One line for one error of pydantic: the key, the value, and how to fix it."""
    key = _key(problem)
    if problem["type"] == "extra_forbidden":
        keys = [f"{key}.{name}" for name in problem["input"]] if isinstance(problem["input"], dict) else [key]
        if renamed := [f"{old} is now {RENAMED[old]}" for old in keys if old in RENAMED]:
            return "; ".join(renamed)
        return f"unknown key {key}; {_nearest(key)}"
    if problem["type"] == "value_error":
        return f"{key}: {_expected(problem)}" if key else _expected(problem)
    if problem["type"] == "missing":
        return f"{key} is missing"
    value = list(problem["input"]) if isinstance(problem["input"], tuple) else problem["input"]
    return f"{key} = {value!r}: {_expected(problem)}"


def _expected(problem: Any) -> str:
    """The expectation of pydantic, in terms of TOML."""
    if problem["type"] == "model_type":
        return "should be a table of keys"
    message = problem["msg"].removeprefix("Value error, ").removesuffix(" after validation, not 0")
    if isinstance(problem["input"], str) and problem["type"].split("_")[0] in ("int", "float", "bool"):
        message += ", without quotes"
    message = message.replace("a valid tuple", "an array such as [...]").replace("tuple should", "should")
    return message.replace("Tuple should", "should").removeprefix("Input ")


def _sections() -> dict[str, type[Section]]:
    """The tables of a recipe by name."""
    types = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {
        name: kind for name, kind in types.items() if isinstance(kind, type) and issubclass(kind, Section)
    }


def _is_text(key: str) -> bool:
    """Whether the setting at a dotted key is free text."""
    return type_of(key) is str


def _is_list(key: str) -> bool:
    """Whether the setting at a dotted key is a list of words."""
    kind = type_of(key)
    return get_origin(kind) is tuple and get_args(kind)[0] is not Source


def type_of(key: str) -> Any:
    """Type of the setting at a dotted key; None if there is no such setting."""
    table, _, name = key.rpartition(".")
    field = _sections().get(table, Settings).model_fields.get(name)
    return field.annotation if field else None


def _nearest(key: str) -> str:
    """List known keys that the user may have meant."""
    sections = {name: list(section.model_fields) for name, section in _sections().items()}
    table, _, last = key.rpartition(".")
    if table.startswith("data.sources"):
        sections[table] = list(Source.model_fields)
    if last in FAMILIAR:
        return f"did you mean {FAMILIAR[last]}?"
    fields = sections.get(table, [] if table else list(Settings.model_fields))
    here = [f"{table}.{name}".lstrip(".") for name in difflib.get_close_matches(last, fields)]
    elsewhere = [f"{name}.{last}" for name, others in sections.items() if last in others]
    if near := [*here, *elsewhere] if table else [*elsewhere, *here]:
        return f"known keys nearest to it: {', '.join(near)}"
    return f"known keys{f' of [{table}]' * (table in sections)}: {', '.join(fields or Settings.model_fields)}"
