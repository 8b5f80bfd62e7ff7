"""Which settings can be combined, which cannot, and why.

The rules are data (`rules`): `check` enforces them, and `fedsdr methods` and docs list them.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from operator import attrgetter
from typing import Any, get_args

from fedsdr.errors import Problems, UserError
from fedsdr.methods import (
    AGGREGATIONS,
    DRIFT_CORRECTIONS,
    METHODS,
    OPTIMIZERS,
    PROMPTS,
    ROBUST_AGGREGATORS,
    look_up,
)
from fedsdr.plugins import ORIGINS, load_plugins, require_whole
from fedsdr.rows import But, LocalOptimizer, MessageDtype, PrivacyKind, Rule, Test, Use
from fedsdr.rules import RULES, USES

TABLES: Mapping[str, Mapping[str, Any]] = {
    "method": METHODS,
    "client.drift_correction": DRIFT_CORRECTIONS,
    "server.aggregation": AGGREGATIONS,
    "server.robust": ROBUST_AGGREGATORS,
    "server.optimizer": OPTIMIZERS,
    "distill.prompts": PROMPTS,
}
"""Setting that selects a row of a table -> the table."""

CHOICES: Mapping[str, Mapping[str, Any]] = {
    **{key: table for key, table in TABLES.items() if key != "distill.prompts"},
    "client.optimizer": dict.fromkeys(get_args(LocalOptimizer)),
    "communication.dtype": dict.fromkeys(get_args(MessageDtype)),
    "privacy.kind": dict.fromkeys(get_args(PrivacyKind)),
}
"""Setting with a few named values that cannot all be combined -> the values."""


def check(settings: Any, is_saved: bool = False) -> None:
    """Reject settings that cannot be combined.

    Args:
        settings: `config.Settings`, with each section already checked.
        is_saved: Whether a run has begun with them. Then it may have some that it does not use: an earlier
            version allowed them, or had other defaults.

    Raises:
        UserError: A name is not in its table, or its plugin could not be loaded.
        ValueError: One line for each violated rule: the settings, the reason, and how to fix it.
    """
    load_plugins()
    unknown = Problems()
    for key, table in TABLES.items():
        named = attrgetter(key)(settings)
        for name in (named,) if isinstance(named, str) else named:
            with unknown.gather():
                require_whole(key, name)
                look_up(table, name, key)
    unknown.refuse()
    keys = {key for rule in RULES for key in (*rule.under, *rule.needs)}
    chosen = {key: attrgetter(key)(settings) for key in keys}
    found = [line for rule in RULES for line in _broken(rule, chosen)]
    found += [line for use in USES if not is_saved for line in _unused(use, settings)]
    steps, method = settings.client.local_steps, METHODS[settings.method]
    if settings.client.budget == "per_round" and steps and not all(method.divide(steps)):
        least = next(num for num in count(steps + 1) if all(method.divide(num)))
        found.append(
            f"client.local_steps = {steps} cannot be divided over the {len(method.stages)} stages of method ="
            f" {settings.method!r}: set at least {least}"
        )
    if found:
        raise ValueError("\n".join(found))


def allowed_with(key: str, name: str) -> dict[str, list[str]]:
    """For each other setting, the values that can be combined with one choice."""
    return {
        other: [n for n in names if not any(any(_broken(rule, {key: name, other: n})) for rule in RULES)]
        for other, names in CHOICES.items()
        if other != key
    }


def as_json() -> dict[str, Any]:
    """All tables, and the allowed pairs: setting -> name -> other setting -> its names."""
    load_plugins()
    tables = {
        key: {name: {"summary": row.summary, "paper": row.paper} for name, row in table.items()}
        for key, table in TABLES.items()
    }
    pairs = {key: {name: allowed_with(key, name) for name in names} for key, names in CHOICES.items()}
    ranks = {name: row.ranks for name, row in AGGREGATIONS.items()}
    return {**tables, "pairs": pairs, "ranks": ranks}


def as_text() -> str:
    """All tables and allowed combinations, for the terminal."""
    load_plugins()
    lines = [line for key, table in TABLES.items() for line in _row_lines(key, table)]
    lines.append("All choices go together, except:")
    for under, needs, reason in _rows("", ", "):
        lines += [f"  {under}: {needs}", f"    {reason}"]
    lines.append("Settings that only some choices use:")
    lines += [f"  {setting}: {used}" for setting, used in _used("")]
    return "\n".join(lines)


def explain(name: str) -> str:
    """The rows of one table, or of one name in any table with what it cannot be combined with.

    Raises:
        UserError: There is no such table or name.
    """
    load_plugins()
    if name in TABLES:
        return "\n".join(_row_lines(name, TABLES[name]))
    keys = [key for key, table in TABLES.items() if name in table]
    if not keys:
        known = [*TABLES, *(row for table in TABLES.values() for row in table)]
        near = difflib.get_close_matches(name, known) or TABLES
        raise UserError(f"{name!r} names no table and no row; nearest: {', '.join(near)}")
    lines = []
    for key in keys:
        lines += _row_lines(key, {name: TABLES[key][name]})
        for other, allowed in allowed_with(key, name).items():
            if barred := [one for one in CHOICES[other] if one not in allowed]:
                lines.append(f"  not with {other} = {', '.join(barred)}")
    return "\n".join(lines)


def _row_lines(key: str, rows: Mapping[str, Any]) -> list[str]:
    """Setting, and summary and source of each of its rows."""
    width = max(len(name) for table in TABLES.values() for name in table) + 2
    lines = [f"{key} ="]
    for name, row in rows.items():
        source = f"{row.paper} ({ORIGINS[key, name]})" if (key, name) in ORIGINS else row.paper
        lines += [f"  {name:<{width}}{row.summary}", f"  {'':{width}}{source}"]
    return lines


def as_markdown() -> str:
    """The allowed combinations, as the tables of docs/methods.md."""
    lines = ["| with | only | because the former |", "|---|---|---|"]
    lines += [f"| {under} | {needs} | {reason} |" for under, needs, reason in _rows("`", "<br>")]
    lines += ["", "| setting | used with |", "|---|---|"]
    lines += [f"| {setting} | {used} |" for setting, used in _used("`")]
    return "\n".join(lines)


def as_used(key: str) -> str:
    """The only choices that use a setting; "" if all do."""
    found = [use for use in USES if use.setting in (key, key.partition(".")[0]) and key != use.key]
    return " and ".join(_words(use.key, use.by, "") for use in found)


def _rows(quote: str, between: str) -> Iterator[tuple[str, str, str]]:
    """Conditions, requirements and reason of each rule, as text."""
    for rule in RULES:
        if not all(_names(key, test) for key, test in rule.under.items()):
            continue  # no row of a plugin is there
        under = " and ".join(_words(key, test, quote) for key, test in rule.under.items())
        yield under, between.join(_words(key, test, quote) for key, test in rule.needs.items()), rule.reason


def _used(quote: str) -> Iterator[tuple[str, str]]:
    """Each setting that only some choices use, and these choices, as text."""
    for use in USES:
        setting = use.setting if "." in use.setting else f"[{use.setting}]"
        apart = "".join(f" but {quote}{name}{quote}" for name in use.but)
        yield f"{quote}{setting}{quote}{apart}", _words(use.key, use.by, quote)


def _words(key: str, test: Test | But, quote: str) -> str:
    return f"{quote}{key}{quote} = {_options(key, test, lambda value: f'{quote}{_toml(value)}{quote}')}"


def _options(key: str, test: Test | But, shown: Callable[[Any], str] = repr) -> str:
    """The values of a setting that pass a test, as text."""
    if isinstance(test, But):
        return f"any but {shown(test.value)}"
    return _listed(_names(key, test), CHOICES.get(key, ()), shown)


def _toml(value: Any) -> str:
    """A value as in a recipe, with names unquoted."""
    return {"": '""', "()": "[]", "False": "false", "True": "true"}.get(str(value), str(value))


def _listed(values: Iterable[Any], every: Iterable[Any], shown: Callable[[Any], str] = repr) -> str:
    """Values as text: "a, b or c", or "any but d" if that is shorter."""
    chosen = list(values)
    others = [value for value in every if value not in chosen]
    few, last = (others, " and ") if 0 < len(others) < len(chosen) else (chosen, " or ")
    *first, final = map(shown, few)
    text = last.join(filter(None, [", ".join(first), final]))
    return f"any but {text}" if few is others else text


def _names(key: str, test: Test) -> list[Any]:
    """The values of a setting that pass a test."""
    return list(test) if isinstance(test, tuple) else [n for n, row in CHOICES[key].items() if test(row)]


def _broken(rule: Rule, chosen: Mapping[str, Any]) -> Iterator[str]:
    """A message for each violated requirement of a rule, for settings that name a choice."""
    if not all(key in chosen and chosen[key] in _names(key, test) for key, test in rule.under.items()):
        return
    found = " and ".join(f"{key} = {chosen[key]!r}" for key in rule.under)
    instead = " or ".join(_instead(key, test) for key, test in rule.under.items())
    for key, test in rule.needs.items():
        if key in chosen and chosen[key] not in _names(key, test):
            yield (
                f"{key} = {chosen[key]!r} does not go with {found}, which {rule.reason}:"
                f" set {key} to {_options(key, test)}, or {instead}"
            )


def _instead(key: str, test: Test) -> str:
    """How to leave the condition of a rule."""
    if key not in CHOICES:
        return f"change {key}"
    barred = _names(key, test)
    return f"set {key} to {_listed([n for n in CHOICES[key] if n not in barred], CHOICES[key])}"


def _unused(use: Use, settings: Any) -> Iterator[str]:
    """A message for each setting that differs from its default but is not used."""
    chosen = attrgetter(use.key)(settings)
    is_used = chosen != use.by.value if isinstance(use.by, But) else chosen in _names(use.key, use.by)
    if is_used:
        return
    section, _, name = use.setting.partition(".")
    part = getattr(settings, section)
    for field, info in type(part).model_fields.items():
        value = getattr(part, field)
        if name in ("", field) and field not in use.but and value != info.default:
            yield (
                f"{section}.{field} = {value!r} does nothing under {use.key} = {chosen!r}:"
                f" leave it out, or set {use.key} to {_options(use.key, use.by)}"
            )
