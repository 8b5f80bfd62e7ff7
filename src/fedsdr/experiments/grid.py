"""The file of a grid: its arms, its seeds, and the settings of every run."""

import os
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from fedsdr.config import Section, Settings
from fedsdr.errors import UserError
from fedsdr.experiments.comparison import Group
from fedsdr.methods import METHODS
from fedsdr.recipe import flat, load_settings
from fedsdr.storage import read_toml

OWNED = {"client.learning_rate": "rates", "client.budget": "budgets"}
"""Settings that are given by a key of the grid, if present."""
VALIDATION = 0.1
"""Share of the training examples held out to choose learning rates."""
STEP_BUDGETS = {
    "": "",
    "per_round": "equal steps per round, over all stages",
    "per_stage": "equal steps of each stage",
}
"""Value of client.budget -> description of what is equal between arms."""


def _differ(values: Any, key: str = "values") -> Any:
    is_list = isinstance(values, list) and values and not any(isinstance(one, dict) for one in values)
    if not is_list or len(set(map(str, values))) < len(values):
        raise ValueError(f"{key} = {values!r}; expected a list of different values")
    return values


Flat = BeforeValidator(lambda value: dict(flat(value)) if isinstance(value, dict) else value)
Different = Annotated[list[Any], AfterValidator(_differ)]
Own = Annotated[dict[str, Any], Flat]
"""Settings by dotted key."""


class Grid(Section):
    """The keys of a grid's file."""

    recipe: str = Field(description="the path of the recipe that all runs start from")
    baseline: str = Field(description="the name of the arm to compare the others with")
    personal_baseline: str = Field(
        "",
        description="the name of the arm to compare personalised models with; default: the baseline",
    )
    seeds: Different = Field(description="a list of different values of run.seed, such as [0, 1, 2]")
    vary: Annotated[dict[str, Different], Flat] = Field(
        {},
        description="a table of settings, each with a list of different values; every combination is an arm",
    )
    arms: dict[str, Own] = Field(
        {}, description="a table of arms by name, each a table of settings; with vary, in every combination"
    )
    common: Own = Field({}, alias="set", description="a table of settings for all runs")
    rates: Different | None = Field(
        None,
        description="a list of different values of client.learning_rate, such as [0.0002, 0.0005]; each arm"
        " uses the best of them on validation examples",
    )
    budgets: Annotated[list[Literal["", "per_round", "per_stage"]], AfterValidator(_differ)] | None = Field(
        None, description='a list of values of client.budget, such as ["per_round", "per_stage"]'
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not {"vary", "arms"} & self.model_fields_set:
            raise ValueError("vary and arms are both missing; expected one of them, or both")
        for name, own in self.arms.items():
            if (name and not re.fullmatch(r"\w[\w.+-]*", name)) or name == "cache":
                raise ValueError(f"arm {name!r} must be a valid folder name; expected letters, digits, . + -")
            if self.rates is None and "rates" in own:
                raise ValueError(f"arms.{name}.rates replaces rates, which the grid does not have")
            _differ(own.get("rates", [0]), f"arms.{name}.rates")
        for key in (key for table in (self.vary, self.common, *self.arms.values()) for key in table):
            if OWNED.get(key) in self.model_fields_set:
                raise ValueError(f"{key} and {OWNED[key]} are both set; leave out one of them")
            if key in ("run.seed", "run.dir"):
                raise ValueError(f"{key} is set by the grid; leave it out, and use seeds")
        return self

    def settings_of_arms(self) -> dict[str, Own]:
        """Settings of each arm by name: its own, its combination of varied values, and the common ones.

        Raises:
            ValueError: Two arms have the same name, or a baseline is not an arm.
        """
        arms: dict[str, Own] = {}
        for (name, own), choice in product((self.arms or {"": {}}).items(), product(*self.vary.values())):
            words = [name] * bool(name) + [re.sub(r"[^\w.+-]+", "_", str(value)) for value in choice]
            arm = "-".join(words)
            if arm in arms:
                raise ValueError(f"two arms have the name {arm}; list each value once")
            arms[arm] = self.common | own | dict(zip(self.vary, choice, strict=True))
        for key in ("baseline", "personal_baseline"):
            if (found := getattr(self, key) or self.baseline) not in arms:
                raise ValueError(f"{key} = {found!r} is not one of the arms {', '.join(arms)}")
        return arms


@dataclass(frozen=True)
class GridPlan:
    """The runs of a grid, and their baselines."""

    runs: dict[tuple[str, int], Settings]
    """(arm, seed) -> settings, in the order of execution; with `trials`, learning rates are still the
    recipe's."""
    trials: dict[tuple[str, float], Settings]
    """(arm, learning rate) -> settings of a run with the first seed, scored on validation examples."""
    rate_of: dict[str, str]
    """Arm -> the arm whose learning rate it uses: itself, or itself under the first budget."""
    groups: dict[str, Group]
    """Description of what is equal -> the group of arms compared on it."""


def read_grid(path: Path, folder: Path, jobs: int = 0) -> GridPlan:
    """Read a grid and check the settings of all its runs.

    Args:
        path: A TOML file, see docs/compare.md.
        folder: Parent folder of the runs.
        jobs: Number of concurrent runs; each uses its share of the cores if `run.threads` is 0.

    Raises:
        UserError: States what was found and what was expected.
    """
    try:
        grid = Grid.model_validate(read_toml(path))
        return _plan(grid, folder, jobs)
    except ValueError as error:
        raise UserError(f"grid {path}: {_explain(error)}") from None


def with_rate(settings: Settings, rate: float) -> Settings:
    """The same settings with another learning rate."""
    return _update(settings, "client", learning_rate=rate)


def _plan(grid: Grid, folder: Path, jobs: int) -> GridPlan:
    plan = GridPlan({}, {}, {}, {})
    arms, budgets = grid.settings_of_arms(), grid.budgets or [""]

    def load(own: Own, arm: str, place: str, seed: Any) -> Settings:
        place_and_seed = {"run.dir": str(folder / arm / place), "run.seed": seed}
        settings = load_settings(grid.recipe, own | place_and_seed)
        if grid.rates and not settings.data.validation:
            settings = _update(settings, "data", validation=VALIDATION)
        changes: dict[str, Any] = {"cache": settings.run.cache or str(folder / "cache")}
        if not settings.run.threads and jobs > 1:
            changes["threads"] = max(1, (os.cpu_count() or 1) // jobs)
        return _update(settings, "run", **changes)

    for budget in budgets:
        here: dict[str, str] = {}
        """Name in the grid -> name of the arm under this budget."""
        for name, settings in arms.items():
            own = settings | ({"client.budget": budget} if budget else {})
            rates = own.pop("rates", grid.rates or [])
            method = METHODS[load(own, name, "", grid.seeds[0]).method]
            # With one stage, both budgets give the same steps.
            is_same = budget == budgets[0] or len(method.stages) == 1
            arm = here[name] = name if is_same else f"{name}-{budget}"
            if arm != name and arm in arms:
                raise ValueError(f"arm {arm} has the same name as {name} under this budget")
            if arm in plan.rate_of:
                continue
            plan.rate_of[arm] = name
            plan.runs.update({(arm, seed): load(own, arm, f"seed-{seed}", seed) for seed in grid.seeds})
            for rate in rates if arm == name else ():
                trial = load({**own, "client.learning_rate": rate}, arm, f"rate-{rate}", grid.seeds[0])
                plan.trials[arm, rate] = _as_trial(trial)
        baselines = (grid.baseline, grid.personal_baseline or grid.baseline)
        plan.groups[STEP_BUDGETS[budget]] = Group(list(here.values()), *(here[name] for name in baselines))
    return plan


def _as_trial(settings: Settings) -> Settings:
    """Score on validation examples by losses only: one token is the shortest possible answer."""
    rewritings = METHODS[settings.method].needs_rewritings
    changes = {"split": "validation", "every": 0, "max_new_tokens": 1, "rewritings": rewritings}
    return _update(settings, "eval", **changes)


def _update(settings: Settings, section: str, **changes: Any) -> Settings:
    table: Section = getattr(settings, section)
    return settings.model_copy(update={section: table.model_copy(update=changes)})


def _explain(error: Exception) -> str:
    """Describe what was found in the file and what was expected."""
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors()[0]
    if not problem["loc"]:
        return str(problem["ctx"]["error"])
    keys = {field.alias or name: field for name, field in Grid.model_fields.items()}
    key = str(problem["loc"][0])
    if problem["type"] in ("missing", "extra_forbidden"):
        known = "; ".join(f"{name}: {field.description}" for name, field in keys.items())
        return f"key {key} is missing or unknown; a grid has {known}"
    return f"{'.'.join(map(str, problem['loc']))} = {problem['input']!r}; expected {keys[key].description}"
