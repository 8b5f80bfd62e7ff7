"""The development of docs/results/beyond.md: arms beyond the paper at equal cost with plain federated LoRA.

    python recipes/beyond/table.py docs/results/study docs/results/beyond

The folders hold records by recipes/study/collect.py: the study's, with the control and, on the mended pool,
the paper's methods; and those of the arms. Seeds 0 to 2 count.
"""

import sys
from pathlib import Path

from fedsdr.experiments.frontier import ScoredRun, by_domain, frontier, seeds
from fedsdr.report.sheets import Sheet, number, render_text, signed
from fedsdr.storage import read_json

CONTROL = {"global": "fedit"}
SEEDS = range(3)


def main(study: Path, beyond: Path) -> None:
    """Print one table, best arm first."""
    arms = ("fedit", "fedsd-labels", "fedsdr-labels")
    paths = [study / f"{arm}-seed-{seed}.json" for arm in arms for seed in SEEDS]
    paths += sorted(beyond.glob("*-seed-[0-2].json"))
    records = [read_json(path) for path in paths]
    runs = [ScoredRun(record["arm"], record["seed"], record["models"]) for record in records]
    found = {(r["arm"], r["scale"]): r for r in frontier(runs, CONTROL, ())}
    domains = {(r["arm"], r["domain"]): r["difference"] for r in by_domain(runs, CONTROL)}
    names = list(dict.fromkeys(domain for _, domain in domains))
    last = sorted((r for (_, scale), r in found.items() if scale == 1), key=lambda r: -r["difference"])
    sheet = Sheet(
        "Arms beyond the paper: gain at equal cost with scaled fedit",
        "lrrrrr" + "r" * len(names),
        ("arm", "seeds", "cost", "gain", "D at lambda = 1/2", "D", *names),
        tuple(
            (r["arm"], seeds(r), number(r["cost"], 3), number(r["gain"], 3),
             signed(found[r["arm"], 0.5]["difference"]), signed(r["difference"]),
             *(signed(domains[r["arm"], name]) for name in names))
            for r in last
        ),
        tuple(last),
        note="Global models after all rounds; cost, gain, D and D by domain at lambda = 1.",
    )  # fmt: skip
    print(render_text(sheet, markdown=True))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
