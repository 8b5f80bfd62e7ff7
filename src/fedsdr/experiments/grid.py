"""A grid as a file: which arms and seeds there are, and the settings of every run that they ask for."""

import os
import re
import tomllib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fedsdr.config import Section, Settings
from fedsdr.errors import UserError
from fedsdr.experiments.comparison import Group
from fedsdr.methods import METHODS
from fedsdr.recipe import flat, load_settings

KEYS = {
    "recipe": "a recipe that all cells begin with",
    "baseline": "the arm that the others are compared with",
    "personal_baseline": "the arm that personalised models are compared with; the baseline, if left out",
    "seeds": "run.seed of the cells, such as [0, 1, 2]",
    "vary": "a table of settings, each with a list of values; an arm is one choice of each",
    "arms": "a table of arms by name, each a table of settings; with vary, each comes in every choice",
    "set": "a table of settings that hold for all cells",
    "rates": "values of client.learning_rate; each arm takes the best of them on validation examples",
    "budgets": 'values of client.budget, such as ["per_round", "per_stage"]; each gets its own tables',
}
NEEDED = {"recipe", "baseline", "seeds"}
OWNED = {"client.learning_rate": "rates", "client.budget": "budgets"}
"""Settings that a key of the grid gives, where it is there."""
VALIDATION = 0.1
"""Share of the training examples that is kept out where learning rates are chosen."""
BUDGETS = {
    "per_round": "equal steps per round, over all stages",
    "per_stage": "equal steps of each stage",
}
Own = dict[str, Any]
"""Settings by dotted key."""


@dataclass(frozen=True)
class Plan:
    """The runs of a grid, and what they are compared with."""

    cells: dict[tuple[str, int], Settings]
    """(arm, seed) -> settings, in the order in which they are run; learning rates are still the recipe's
    where `trials` choose them."""
    trials: dict[tuple[str, float], Settings]
    """(arm, learning rate) -> settings of a run with the first seed that is scored on validation examples."""
    rate_of: dict[str, str]
    """Arm -> the arm whose choice of a learning rate it takes: itself, or itself under the first budget."""
    groups: dict[str, Group]
    """What is equal, in words -> what is compared on it."""


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
    rates, budgets, seeds = values.get("rates", []), values.get("budgets", [""]), values["seeds"]
    arms = _arms(path, values)
    baselines = [values["baseline"], values.get("personal_baseline", values["baseline"])]
    for key, name in zip(("baseline", "personal_baseline"), baselines, strict=True):
        if name not in arms:
            raise UserError(f"grid {path}: {key} = {name!r} is none of the arms {', '.join(arms)}")

    def load(own: Own, arm: str, place: str, seed: Any) -> Settings:
        changes = {**own, "run.dir": str(folder / arm / place), "run.seed": seed}
        settings = load_settings(values["recipe"], changes)
        if rates and not settings.data.validation:
            settings = _update(settings, "data", validation=VALIDATION)
        changes = {"cache": settings.run.cache or str(folder / "cache")}
        if not settings.run.threads and jobs > 1:
            changes["threads"] = max(1, (os.cpu_count() or 1) // jobs)
        return _update(settings, "run", **changes)

    cells: dict[tuple[str, int], Settings] = {}
    trials: dict[tuple[str, float], Settings] = {}
    rate_of: dict[str, str] = {}
    groups: dict[str, Group] = {}
    for budget in budgets:
        here: dict[str, str] = {}
        """Name in the grid -> the arm that it is under this budget."""
        for name, settings in arms.items():
            own = settings | ({"client.budget": budget} if budget else {})
            own_rates = own.pop("rates", rates)
            method = METHODS[load(own, name, "", seeds[0]).method]
            if budget == budgets[0] or len(method.stages) == 1:  # one stage takes the same steps either way
                here[name] = name
            else:
                here[name] = f"{name}-{budget}"
                if here[name] in arms:
                    raise UserError(f"grid {path}: arm {here[name]} is the name of {name} under that budget")
            arm = here[name]
            if arm in rate_of:
                continue
            rate_of[arm] = name
            cells |= {(arm, seed): load(own, arm, f"seed-{seed}", seed) for seed in seeds}
            for rate in own_rates if arm == name else ():
                trial = load({**own, "client.learning_rate": rate}, arm, f"rate-{rate}", seeds[0])
                trials[arm, rate] = _as_trial(trial)
        groups[BUDGETS.get(budget, "")] = Group(list(here.values()), *(here[name] for name in baselines))
    return Plan(cells, trials, rate_of, groups)


def _arms(path: Path, values: dict[str, Any]) -> dict[str, Own]:
    """Settings of each arm by its name: its own, a choice of what is varied, and what is common to all."""
    varied, common = dict(flat(values.get("vary", {}))), dict(flat(values.get("set", {})))
    named = {name: dict(flat(own)) for name, own in values.get("arms", {"": {}}).items()}
    for key, choices in varied.items():
        if not isinstance(choices, list) or not choices or any(isinstance(one, dict) for one in choices):
            raise UserError(f"grid {path}: vary.{key} = {choices!r}; expected a list of values")
    for name, own in named.items():
        if (name and not re.fullmatch(r"\w[\w.+-]*", name)) or name == "cache":
            raise UserError(
                f"grid {path}: arm {name!r} would be a folder's name; expected letters, digits, . + -"
            )
        if "rates" in own and "rates" not in values:
            raise UserError(f"grid {path}: arms.{name}.rates replaces rates, which the grid does not give")
    for key in {*varied, *common, *(key for own in named.values() for key in own)}:
        if key in OWNED and OWNED[key] in values:
            raise UserError(f"grid {path}: {key} is given beside {OWNED[key]}; leave out one of them")
        if key in ("run.seed", "run.dir"):
            raise UserError(f"grid {path}: {key} is the grid's own; leave it out, and give seeds")
    arms: dict[str, Own] = {}
    for (name, own), choice in product(named.items(), product(*varied.values())):
        words = [name] * bool(name) + [re.sub(r"[^\w.+-]+", "_", str(value)) for value in choice]
        arm = "-".join(words)
        if arm in arms:
            raise UserError(f"grid {path}: two arms are called {arm}; give a value once")
        arms[arm] = common | own | dict(zip(varied, choice, strict=True))
    return arms


def with_rate(settings: Settings, rate: float) -> Settings:
    """The same with another learning rate."""
    return _update(settings, "client", learning_rate=rate)


def _read(path: Path) -> dict[str, Any]:
    """The keys of a grid, each of its kind."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"grid {path} cannot be read: {error}") from None
    if wrong := sorted((NEEDED - values.keys()) | (values.keys() - KEYS.keys())):
        known = "; ".join(f"{key}: {meaning}" for key, meaning in KEYS.items())
        raise UserError(f"grid {path}: key {wrong[0]} is missing or unknown; a grid has {known}")
    if not {"vary", "arms"} & values.keys():
        raise UserError(f"grid {path}: vary and arms are both missing; expected one of them, or both")
    tables = [(key, values.get(key, {})) for key in ("vary", "arms", "set")]
    if isinstance(values.get("arms"), dict):
        tables += [(f"arms.{name}", own) for name, own in values["arms"].items()]
    for key, found in tables:
        if not isinstance(found, dict):
            raise UserError(f"grid {path}: {key} = {found!r}; expected a table of settings")
    for key in ("recipe", "baseline", "personal_baseline"):
        if not isinstance(values.get(key, ""), str):
            raise UserError(f"grid {path}: {key} = {values[key]!r}; expected a text")
    examples: dict[str, list[Any]] = {"seeds": [0, 1, 2], "rates": [2e-4, 5e-4], "budgets": [*BUDGETS]}
    lists = [(key, values[key], example) for key, example in examples.items() if key in values]
    of_arms = ((f"arms.{name}.rates", own) for name, own in values.get("arms", {}).items())
    lists += [(key, own["rates"], examples["rates"]) for key, own in of_arms if "rates" in own]
    for key, found, example in lists:
        if not isinstance(found, list) or not found or len(set(map(str, found))) < len(found):
            raise UserError(
                f"grid {path}: {key} = {found!r}; expected a list of different values, such as {example}"
            )
    if unknown := [budget for budget in values.get("budgets", ()) if budget not in [*BUDGETS]]:
        raise UserError(f"grid {path}: budgets = {unknown!r}; known are {', '.join(BUDGETS)}")
    return values


def _as_trial(settings: Settings) -> Settings:
    """Score on validation examples, by losses alone: one token is the shortest answer there is."""
    rewritings = METHODS[settings.method].learns_last != "raw"
    changes = {"on": "validation", "every": 0, "max_new_tokens": 1, "rewritings": rewritings}
    return _update(settings, "eval", **changes)


def _update(settings: Settings, section: str, **changes: Any) -> Settings:
    table: Section = getattr(settings, section)
    return settings.model_copy(update={section: table.model_copy(update=changes)})
