"""A grid as a file: which arms and seeds there are, and the settings of every run that they ask for."""

import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fedsdr.config import Section, Settings
from fedsdr.errors import UserError
from fedsdr.recipe import load_settings, to_toml
from fedsdr.tables import METHODS

KEYS = {
    "recipe": "a recipe that all cells begin with",
    "baseline": "the arm that the others are compared with",
    "seeds": "run.seed of the cells, such as [0, 1, 2]",
    "vary": "a table of settings, each with a list of values; an arm is one choice of each",
    "set": "a table of settings that hold for all cells",
    "rates": "values of client.learning_rate; each arm takes the best of them on validation examples",
    "budgets": 'values of client.budget, such as ["per_round", "per_stage"]; each gets its own tables',
}
OPTIONAL = {"set", "rates", "budgets"}
VALIDATION = 0.1
"""Share of the training examples that is kept out where learning rates are chosen."""
BUDGETS = {
    "per_round": "equal steps per round, over all stages",
    "per_stage": "equal steps of each stage, so of the shared adapter",
}


@dataclass(frozen=True)
class Plan:
    """The runs of a grid, and what they are compared with."""

    baseline: str
    cells: dict[tuple[str, int], Settings]
    """(arm, seed) -> settings, in the order in which they are run; learning rates are still the recipe's
    where `trials` choose them."""
    trials: dict[tuple[str, float], Settings]
    """(arm, learning rate) -> settings of a run with the first seed that is scored on validation examples."""
    rate_of: dict[str, str]
    """Arm -> the arm whose choice of a learning rate it takes: itself, or itself under the first budget."""
    budgets: dict[str, list[str]]
    """What is equal -> the arms that are compared on it."""


def read_grid(path: Path, folder: Path, jobs: int = 0) -> Plan:
    """Read a grid and check the settings of all its runs.

    Args:
        path: A TOML file, see docs/methods.md.
        folder: Where the runs will be.
        jobs: How many will go on at a time; each takes its share of the cores where `run.threads` is 0.

    Raises:
        UserError: With what was found and what was expected.
    """
    values = _read(path)
    varied = dict(flat(values["vary"]))
    for key, choices in varied.items():
        if not isinstance(choices, list) or not choices:
            raise UserError(f"grid {path}: vary.{key} = {choices!r}; expected a list of values")
    rates, budgets = values.get("rates", []), values.get("budgets", [""])
    for key, owner in (("client.learning_rate", "rates"), ("client.budget", "budgets")):
        if owner in values and key in varied:
            raise UserError(f"grid {path}: vary.{key} is given beside {owner}; leave out one of them")
    common = dict(flat(values.get("set", {})))
    if rates:
        common = {"data.validation": VALIDATION, **common}
    cells: dict[tuple[str, int], Settings] = {}
    trials: dict[tuple[str, float], Settings] = {}
    rate_of: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for budget, choice in product(budgets, product(*varied.values())):
        own = dict(zip(varied, choice, strict=True)) | ({"client.budget": budget} if budget else {})
        arm = "-".join(re.sub(r"[^\w.+-]+", "_", str(value)) for value in choice)
        name, first = arm, values["seeds"][0]
        settings = _load(values["recipe"], common | own, folder / arm, first, jobs)
        if budget != budgets[0]:
            if len(METHODS[settings.method].stages) == 1:  # one stage takes the same steps either way
                groups.setdefault(BUDGETS[budget], []).append(arm)
                continue
            arm += f"-{budget}"
        groups.setdefault(BUDGETS.get(budget, ""), []).append(arm)
        rate_of[arm] = name
        for seed in values["seeds"]:
            if (arm, seed) in cells:
                raise UserError(f"grid {path}: two arms are called {arm}; give a value once")
            cells[arm, seed] = _load(
                values["recipe"], common | own, folder / arm / f"seed-{seed}", seed, jobs
            )
        for rate in rates if arm == name else ():
            chosen = common | own | {"client.learning_rate": rate}
            where = folder / arm / f"rate-{rate}"
            trials[arm, rate] = _as_trial(_load(values["recipe"], chosen, where, first, jobs))
    arms = dict.fromkeys(arm for arm, _ in cells)
    if values["baseline"] not in arms:
        raise UserError(
            f"grid {path}: baseline = {values['baseline']!r} is none of the arms {', '.join(arms)}"
        )
    lacking = [what for what, members in groups.items() if values["baseline"] not in members]
    if lacking:
        raise UserError(
            f"grid {path}: baseline = {values['baseline']!r} has several stages, so it is another arm under"
            " each of the budgets; name a method of one stage, or one budget"
        )
    return Plan(values["baseline"], cells, trials, rate_of, groups)


def with_rate(settings: Settings, rate: float) -> Settings:
    """The same with another learning rate."""
    return _update(settings, "client", learning_rate=rate)


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested tables as dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _read(path: Path) -> dict[str, Any]:
    """The keys of a grid, each of its kind."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"grid {path} cannot be read: {error}") from None
    if wrong := sorted((KEYS.keys() - values.keys() - OPTIONAL) | (values.keys() - KEYS.keys())):
        known = "; ".join(f"{key}: {meaning}" for key, meaning in KEYS.items())
        raise UserError(f"grid {path}: key {wrong[0]} is missing or unknown; a grid has {known}")
    for key in ("vary", "set"):
        if not isinstance(values.get(key, {}), dict):
            raise UserError(f"grid {path}: {key} = {values[key]!r}; expected a table of settings")
    for key, example in (("seeds", [0, 1, 2]), ("rates", [2e-4, 5e-4]), ("budgets", [*BUDGETS])):
        found = values.get(key, [None])
        if not isinstance(found, list) or not found or len(set(map(str, found))) < len(found):
            raise UserError(
                f"grid {path}: {key} = {found!r}; expected a list of different values, such as {example}"
            )
    if unknown := sorted(set(values.get("budgets", ())) - BUDGETS.keys()):
        raise UserError(f"grid {path}: budgets = {unknown!r}; known are {', '.join(BUDGETS)}")
    return values


def _load(recipe: str, chosen: dict[str, Any], where: Path, seed: Any, jobs: int) -> Settings:
    words = [f"{key}={to_toml(value)}" for key, value in chosen.items()]
    settings = load_settings(recipe, [*words, f"run.dir={where}", f"run.seed={to_toml(seed)}"])
    changes: dict[str, Any] = {}
    if not settings.run.cache:
        arm = where.parent if where.name.startswith(("seed-", "rate-")) else where
        changes["cache"] = str(arm.parent / "cache")
    if not settings.run.threads and jobs > 1:
        changes["threads"] = max(1, (os.cpu_count() or 1) // jobs)
    return _update(settings, "run", **changes)


def _as_trial(settings: Settings) -> Settings:
    """Score on validation examples, by losses alone: one token is the shortest answer there is."""
    rewritings = METHODS[settings.method].learns_last != "raw"
    changes = {"on": "validation", "every": 0, "max_new_tokens": 1, "rewritings": rewritings}
    return _update(settings, "eval", **changes)


def _update(settings: Settings, section: str, **changes: Any) -> Settings:
    table: Section = getattr(settings, section)
    return settings.model_copy(update={section: table.model_copy(update=changes)})
