"""Rows of other packages and programs: methods, aggregations, server optimizers and rewriters.

`register` adds a row. A package does so in a module that one of its entry points names. Every process that
checks settings imports these: the workers of a grid, the clients and the server of a deployment.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from operator import attrgetter
from typing import Any, TypeVar

from fedsdr.errors import UserError
from fedsdr.methods import AGGREGATIONS, METHODS, OPTIMIZERS, PROMPTS
from fedsdr.rows import Aggregation, Method, Named, Optimizer

Function = TypeVar("Function", bound=Callable[..., Any])

FUNCTIONS: Mapping[type, dict[str, Callable[..., Any]]] = {Aggregation: {}, Optimizer: {}, Named: {}}
"""The functions behind own rows, by type of row and name."""
ORIGINS: dict[tuple[str, str], str] = {}
"""(Setting, name) of each own row -> the package that it comes from, and its version."""


@dataclass(frozen=True)
class Place:
    """Where rows of a type belong."""

    group: str
    """Of entry points."""
    setting: str
    table: dict[str, Any]


PLACES: Mapping[type, Place] = {
    Method: Place("fedsdr.methods", "method", METHODS),
    Aggregation: Place("fedsdr.aggregations", "server.aggregation", AGGREGATIONS),
    Optimizer: Place("fedsdr.server_optimizers", "server.optimizer", OPTIMIZERS),
    Named: Place("fedsdr.rewriters", "distill.prompts", PROMPTS),
}


@dataclass
class _State:
    is_loaded: bool = False
    origin: str = "this program"
    """Package whose modules are being imported, and its version."""


_state = _State()


def register(name: str, row: Method | Named) -> Callable[[Function], Function]:
    """Add a row of your own to the tables of methods; all but a method need a function, which this decorates.

    Args:
        name: What settings call it.
        row: A `Method`, which needs no function. An `Aggregation`, of a function (updates, server, before) ->
            Target, as in `server.aggregate`; with is_linear=False unless each number of the target depends
            only on the same number of each client. An `Optimizer`, of (current, target, moments, server) ->
            (new, moments), as in `server.optimize`. `Named`, a rewriter, of (example) -> turns, as in
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
        _add(place, name, replace(row, is_own=True) if isinstance(row, Aggregation) else row)
        return function

    if isinstance(row, Method):
        _add(place, name, row)
    return keep


def _add(place: Place, name: str, row: Method | Named) -> None:
    place.table[name] = row
    ORIGINS[place.setting, name] = _state.origin


def describe_plugins(settings: Any) -> str:
    """Own rows that settings choose, and where each comes from; "" for none."""

    def is_chosen(key: str, name: str) -> bool:
        value = attrgetter(key)(settings)
        return name == value or (isinstance(value, tuple) and name in value)

    own = ((key, name, origin) for (key, name), origin in ORIGINS.items() if is_chosen(key, name))
    return ", ".join(f"{key} = {name} of {origin}" for key, name, origin in own)


def load_plugins() -> None:
    """Import the modules that entry points of installed packages name, once per process.

    Raises:
        UserError: One cannot be imported, or does not register the row that its entry point names.
    """
    if _state.is_loaded:
        return
    _state.is_loaded = True
    try:
        for place in PLACES.values():
            for point in entry_points(group=place.group):
                package = f"{point.dist.name} {point.dist.version}" if point.dist else point.module
                _state.origin = package
                try:
                    point.load()
                except Exception as error:
                    reason = f"cannot be imported: {type(error).__name__}: {error}"
                    raise UserError(f"plugin {package}: {point.value} {reason}; mend or remove it") from error
                if (place.setting, point.name) not in ORIGINS:
                    raise UserError(
                        f"plugin {package}: {point.value} registers no {place.setting} {point.name!r}"
                    )
    except UserError:
        _state.is_loaded = False
        raise
    finally:
        _state.origin = "this program"
