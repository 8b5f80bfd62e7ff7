"""`fedsdr compare`: every arm of a grid with every seed, each a run folder, and the tables that compare them.

Finished cells are kept, so a stopped grid goes on. Rewritings and scores of the base model are shared through
one cache: they depend on model, data and `distill.seed`, and not on the seed of a run.
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fedsdr.apps.run import Result, is_finished, read_result, read_settings, resolve, resume, run
from fedsdr.config import Settings, load_settings, to_toml
from fedsdr.errors import UserError
from fedsdr.progress import say
from fedsdr.report.comparison import METRICS, Cell, cost_comparison, domain_comparison, score_comparison
from fedsdr.report.tables import Sheet, render_text, to_csv
from fedsdr.storage import read_lines, write_file, write_json

KEYS = {
    "recipe": "a recipe that all cells begin with",
    "baseline": "the arm that the others are compared with",
    "seeds": "run.seed of the cells, such as [0, 1, 2]",
    "vary": "a table of settings, each with a list of values; an arm is one choice of each",
    "set": "a table of settings that hold for all cells",
}


@dataclass(frozen=True)
class Plan:
    """The cells of a grid, and what they are compared with."""

    baseline: str
    cells: dict[tuple[str, int], Settings]
    """(arm, seed) -> settings, in the order in which they are run."""


def compare(grid: str | Path, to: str | Path | None = None) -> list[Sheet]:
    """Run the cells that are not finished, and write comparison.json, .md and CSV files.

    Args:
        grid: A TOML file, see docs/methods.md.
        to: The grid's folder; None: runs/<name of the file>.

    Returns:
        The tables: exact score and losses against the baseline, all metrics by domain, costs.

    Raises:
        UserError: The grid is not as it should be, or a cell was run with other settings. All cells are
            checked before the first is run.
    """
    folder = Path(to) if to else Path("runs") / Path(grid).stem
    plan = read_grid(Path(grid), folder)
    found: list[Cell] = []
    for (arm, seed), settings in plan.cells.items():
        say(f"cell {len(found) + 1} of {len(plan.cells)}: {arm}, seed {seed}")
        result = _finish(settings)
        events = read_lines(result.folder / "metrics.jsonl")
        found.append(Cell(arm, seed, result.base, result.final, events))
    sheets = [
        *(score_comparison(found, plan.baseline, metric) for metric in METRICS),
        domain_comparison(found),
        cost_comparison(found),
    ]
    names = [*METRICS, "domains", "costs"]
    write_json(folder / "comparison.json", as_json(sheets))
    write_file(
        folder / "comparison.md", "\n\n".join(render_text(sheet, markdown=True) for sheet in sheets) + "\n"
    )
    for name, sheet in zip(names, sheets, strict=True):
        write_file(folder / f"comparison-{name}.csv", to_csv(sheet.records))
    say(f"tables: {folder}/comparison.md, comparison.json and comparison-*.csv")
    return sheets


def as_json(sheets: Sequence[Sheet]) -> list[dict[str, Any]]:
    """Tables as JSON: caption and records."""
    return [{"table": sheet.caption, "records": list(sheet.records)} for sheet in sheets]


def read_grid(path: Path, folder: Path) -> Plan:
    """Read a grid and check the settings of all its cells.

    Raises:
        UserError: With what was found and what was expected.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"grid {path} cannot be read: {error}") from None
    if wrong := sorted((KEYS.keys() - values.keys() - {"set"}) | (values.keys() - KEYS.keys())):
        known = "; ".join(f"{key}: {meaning}" for key, meaning in KEYS.items())
        raise UserError(f"grid {path}: key {wrong[0]} is missing or unknown; a grid has {known}")
    seeds = values["seeds"]
    if not isinstance(seeds, list) or not seeds or len(set(map(str, seeds))) < len(seeds):
        raise UserError(
            f"grid {path}: seeds = {seeds!r}; expected a list of different numbers, such as [0, 1, 2]"
        )
    varied = dict(_flat(values["vary"]))
    for key, choices in varied.items():
        if not isinstance(choices, list) or not choices:
            raise UserError(f"grid {path}: vary.{key} = {choices!r}; expected a list of values")
    common = [f"{key}={to_toml(value)}" for key, value in _flat(values.get("set", {}))]
    cells: dict[tuple[str, int], Settings] = {}
    for choice in product(*varied.values()):
        arm = "-".join(re.sub(r"[^\w.+]+", "_", str(value)) for value in choice)
        chosen = [f"{key}={to_toml(value)}" for key, value in zip(varied, choice, strict=True)]
        for seed in seeds:
            if (arm, seed) in cells:
                raise UserError(f"grid {path}: two arms are called {arm}; give a value once")
            own = [f"run.dir={folder / arm / f'seed-{seed}'}", f"run.seed={to_toml(seed)}"]
            settings = load_settings(values["recipe"], [*common, *chosen, *own])
            if not settings.run.cache:
                cached = settings.run.model_copy(update={"cache": str(folder / "cache")})
                settings = settings.model_copy(update={"run": cached})
            cells[arm, seed] = settings
    arms = dict.fromkeys(arm for arm, _ in cells)
    if values["baseline"] not in arms:
        raise UserError(
            f"grid {path}: baseline = {values['baseline']!r} is none of the arms {', '.join(arms)}"
        )
    return Plan(values["baseline"], cells)


def _finish(settings: Settings) -> Result:
    """Run a cell, go on with it, or read it if it is finished."""
    folder = Path(settings.run.dir)
    if not (folder / "config.toml").exists():
        return run(settings)
    before, now = read_settings(folder), resolve(settings)
    if before != now:
        raise UserError(
            f"{folder} was run with other settings ({_first_difference(before, now)}); remove it, or name"
            " another folder by --to"
        )
    return read_result(folder) if is_finished(before) else resume(folder)


def _first_difference(before: Settings, now: Settings) -> str:
    old, new = (dict(_flat(some.model_dump(mode="json"))) for some in (before, now))
    key = next(key for key in new if old.get(key) != new[key])
    return f"{key} was {old.get(key)!r} and is {new[key]!r}"


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested tables as dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
