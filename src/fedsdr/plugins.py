"""Rows of other packages and programs: methods, aggregations, server optimizers and rewriters.

`register` adds a row. A package does so in a module that one of its entry points names. Every process that
checks settings imports these: the workers of a grid, the clients and the server of a deployment.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from operator import attrgetter
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from fedsdr.errors import UserError
from fedsdr.methods import AGGREGATIONS, METHODS, OPTIMIZERS, PROMPTS
from fedsdr.progress import log
from fedsdr.rows import Aggregation, Method, Named, Optimizer, Rewriter

Function = TypeVar("Function", bound=Callable[..., Any])

FUNCTIONS: Mapping[type, dict[str, Callable[..., Any]]] = {Aggregation: {}, Optimizer: {}, Rewriter: {}}
"""The functions behind registered rows, by type of row and name."""
ORIGINS: dict[tuple[str, str], str] = {}
"""(Setting, name) of each registered row -> its package and version."""
BROKEN: dict[tuple[str, str], str] = {}
"""(Setting, name) of each row that an entry point names but that could not be loaded -> the reason."""
PROGRAM = "this program"
"""Origin of a row without a package."""


@dataclass(frozen=True)
class Place:
    """The place of rows of one type."""

    group: str
    """Of entry points."""
    setting: str
    table: dict[str, Any]


PLACES: Mapping[type, Place] = {
    Method: Place("fedsdr.methods", "method", METHODS),
    Aggregation: Place("fedsdr.aggregations", "server.aggregation", AGGREGATIONS),
    Optimizer: Place("fedsdr.server_optimizers", "server.optimizer", OPTIMIZERS),
    Rewriter: Place("fedsdr.rewriters", "distill.prompts", PROMPTS),
}


@dataclass
class _State:
    is_loaded: bool = False
    origin: str = PROGRAM
    """Package whose modules are being imported, and its version."""


_state = _State()


def register(name: str, row: Method | Named) -> Callable[[Function], Function]:
    """Add a row of your own to the tables of methods; all but a method need a function, which this decorates.

    Args:
        name: What settings call it.
        row: A `Method`, which needs no function. An `Aggregation`, of a function (updates, server, before) ->
            Target, as in `server.aggregate`; with is_linear=False unless each number of the target depends
            only on the same number of each client. An `Optimizer`, of (current, target, moments, server) ->
            (new, moments), as in `server.optimize`. A `Rewriter`, of (example) -> turns, as in
            `distill.prompts`.

    Returns:
        The decorator.

    Raises:
        UserError: The name is a built-in row's, or not fit for a name; the row is of no table.
    """
    if type(row) not in PLACES:
        kinds = ", ".join(kind.__name__ for kind in PLACES)
        raise UserError(f"the row of {name!r} is a {type(row).__name__}; expected one of {kinds}")
    place = PLACES[type(row)]
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(f"{place.setting} {name!r}: expected letters, digits, '.', '+', '-' and '_'")
    if name in place.table and (place.setting, name) not in ORIGINS:
        raise UserError(f"{place.setting} = {name!r} is a built-in row: give yours another name")

    def keep(function: Function) -> Function:
        FUNCTIONS[type(row)][name] = function
        _add(place, name, row, _state.origin)
        return function

    if isinstance(row, Method):
        _add(place, name, row, _state.origin)
    return keep


def _add(place: Place, name: str, row: Method | Named, origin: str) -> None:
    place.table[name] = replace(row, is_plugin=True) if isinstance(row, Aggregation) else row
    ORIGINS[place.setting, name] = origin


def describe_plugins(settings: Any) -> str:
    """Registered rows chosen by the settings, with their origins; "" if there are none."""
    own = ((place.setting, name) for _, place, name in _chosen(settings))
    return ", ".join(f"{key} = {name} of {ORIGINS[key, name]}" for key, name in own)


def describe_rows(settings: Any) -> dict[str, dict[str, Any]]:
    """Registered rows chosen by the settings, as JSON: setting -> name -> the row and its origin."""
    found: dict[str, dict[str, Any]] = {}
    for kind, place, name in _chosen(settings):
        row = TypeAdapter(kind).dump_python(place.table[name], mode="json")
        found.setdefault(place.setting, {})[name] = {"row": row, "origin": ORIGINS[place.setting, name]}
    return found


def restore_rows(saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Restore the rows of a run that are not registered here, so that its folder can be read.

    They lack their functions (`require_functions`).

    Args:
        saved: From `describe_rows`.

    Raises:
        UserError: A row is not one of this version.
    """
    load_plugins()
    for kind, place in PLACES.items():
        for name, one in saved.get(place.setting, {}).items():
            if name not in place.table:
                try:
                    _add(place, name, TypeAdapter(kind).validate_python(one["row"]), one["origin"])
                except ValidationError as error:
                    raise UserError(
                        f"{place.setting} = {name!r} of {one['origin']} was saved by another version of"
                        f" fedsdr: register it here, or use that version ({error.errors()[0]['msg']})"
                    ) from None


def require_functions(settings: Any) -> None:
    """Reject computing with a row whose function is not registered here.

    Raises:
        UserError: Names the row, and how to fix it.
    """
    for kind, place, name in _chosen(settings):
        if kind is not Method and name not in FUNCTIONS[kind]:
            origin = ORIGINS[place.setting, name]
            how = f"install {origin}"
            if origin == PROGRAM:
                how = "run or resume it in a program that registers it (fedsdr.resume, docs/python.md)"
            raise UserError(
                f"{place.setting} = {name!r} was registered when the run began, but is not registered here:"
                f" {BROKEN.get((place.setting, name), how)}; export and report need no registration"
            )


def _chosen(settings: Any) -> Iterator[tuple[type, Place, str]]:
    """Registered rows chosen by the settings."""
    for kind, place in PLACES.items():
        value = attrgetter(place.setting)(settings)
        for name in value if isinstance(value, tuple) else (value,):
            if (place.setting, name) in ORIGINS:
                yield kind, place, name


def load_plugins() -> None:
    """Import the modules that entry points of installed packages name, once per process.

    One that cannot be imported, or does not register the row that its entry point names, is skipped with
    a warning; only settings that choose such a row are refused (`require_whole`).
    """
    if _state.is_loaded:
        return
    _state.is_loaded = True
    for place in PLACES.values():
        for point in entry_points(group=place.group):
            package = f"{point.dist.name} {point.dist.version}" if point.dist else point.module
            _state.origin, before = package, set(ORIGINS)
            reason = f"plugin {package}: {point.value} registers no {place.setting} {point.name!r}"
            try:
                point.load()
            except Exception as error:
                reason = (
                    f"plugin {package}: {point.value} cannot be imported: {type(error).__name__}: {error}"
                )
                for key, name in set(ORIGINS) - before:  # registered before it failed
                    _remove(key, name)
            finally:
                _state.origin = PROGRAM
            if (place.setting, point.name) not in ORIGINS:
                if reason not in BROKEN.values():
                    log.warning("warning: %s; the plugin is skipped: repair or remove it", reason)
                BROKEN[place.setting, point.name] = reason


def _remove(key: str, name: str) -> None:
    kind, place = next((kind, place) for kind, place in PLACES.items() if place.setting == key)
    del place.table[name], ORIGINS[key, name]
    FUNCTIONS.get(kind, {}).pop(name, None)


def require_whole(key: str, name: str) -> None:
    """Reject a name whose plugin could not be loaded.

    Raises:
        UserError: Names the plugin and its exception.
    """
    if (key, name) in BROKEN and (key, name) not in ORIGINS:
        raise UserError(f"{key} = {name!r} is unavailable: {BROKEN[key, name]}; repair or remove the plugin")
