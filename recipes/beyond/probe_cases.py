"""Cases to evaluate `fedsdr probe`, from the study's cells: its predictions, and the gains of rewriting.

    python recipes/beyond/probe_cases.py CASES STUDY ...

STUDY is a folder with data and cells: of recipes/study/run.sh, or made alike by recipes/study/data.py and
cell.py of other domains; its name is that of the data in CASES. A case is a domain of one set of rewritings
and three seeds. CASES gets a line for each: the numbers that the probe finds before training, with the first
seed, and by seed "plain" (the gain of fedsd less that of fedit in that domain) and "equal_cost" (the same
against fedit scaled to fedsd's cost). Sets with missing cells are listed and left out; cases already in CASES
are kept. Then both outcomes are judged: every number, and the rule "rewrite if most pass", with whole domains
left out.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedsdr.analysis.probe import FEATURES, evaluate_rule
from fedsdr.errors import UserError
from fedsdr.experiments.frontier import ScoredRun, by_domain
from fedsdr.experiments.probe import cases_sheet, probe
from fedsdr.federation.client_context import close_clients
from fedsdr.recipe import load_settings
from fedsdr.report.sheets import render_text
from fedsdr.storage import Event, read_json, read_lines, rewrite_lines

RECIPE = Path(__file__).parents[1] / "study/study.toml"
SETS = (
    ("answer", "fedsd", (0, 1, 2)),
    ("answer", "fedsd", (3, 4, 5)),
    ("off", "fedsd-off", (0, 1, 2)),
    ("off", "fedsd-off", (3, 4, 5)),
)
"""Verify mode, arm and seeds."""
CHECKS = {"answer": "checked", "off": "not checked"}
"""Verify mode -> its name in the cases."""
NUM = 16
"""Examples of a client that are probed."""


def main(cases: Path, *folders: Path) -> None:
    """Create the missing cases, and evaluate."""
    found = read_lines(cases)
    for folder in folders:
        for mode, arm, seeds in SETS:
            name = f"{folder.name}, {CHECKS[mode]}, seeds {seeds}"
            paths = [
                folder / f"cells/{of}/seed-{seed}/record.json" for of in ("fedit", arm) for seed in seeds
            ]
            if any(case["set"] == name for case in found):
                continue
            if missing := [str(path) for path in paths if not path.exists()]:
                print(f"left out: {name}: no {', '.join(missing)}")
                continue
            gained = outcomes([scored(path) for path in paths], arm)
            own = {"data.root": folder / "data" / mode, "distill.verify": mode, "data.seed": seeds[0]}
            settings = load_settings(RECIPE, [f"{key}={value}" for key, value in own.items()])
            found += [
                {
                    "set": name,
                    **{key: r[key] for key in ("domain", "advice", *FEATURES)},
                    **gained[r["domain"]],
                }
                for r in probe(settings, NUM)["records"]
            ]
            close_clients()
            rewrite_lines(cases, found)
    for outcome in ("plain", "equal_cost"):
        print(f"\nOutcome: {outcome}\n")
        try:
            judged = evaluate_rule([{**case, "outcomes": case[outcome]} for case in found if case[outcome]])
        except UserError as reason:
            print(reason)
            continue
        print(render_text(cases_sheet(judged), markdown=True))
        print(json.dumps({key: judged[key] for key in ("taken", "advised", "notes")}))


def scored(path: Path) -> ScoredRun:
    """The global models of a cell."""
    record = read_json(path)
    return ScoredRun(record["arm"], record["seed"], record["models"])


def outcomes(runs: Sequence[ScoredRun], arm: str) -> dict[str, Event]:
    """Domain -> gain of the arm over fedit there, by seed: plainly, and at equal cost."""
    last: dict[tuple[str, int], Event] = {}
    for run in runs:
        points = run.points("global")
        last[run.arm, run.seed] = points[max(number for number, _ in points), 1.0]["test"]
    seeds = sorted({run.seed for run in runs})
    return {
        r["domain"]: {
            "plain": [
                float(np.mean(last["fedit", seed][r["domain"]]) - np.mean(last[arm, seed][r["domain"]]))
                for seed in seeds
            ],
            "equal_cost": r["by_seed"],
        }
        for r in by_domain(runs, {"global": "fedit"})
    }


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
