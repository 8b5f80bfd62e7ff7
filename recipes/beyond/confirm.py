"""The confirmation of docs/results/beyond.md: does the chosen arm lie above the frontier?

    python recipes/beyond/confirm.py RECORDS ARM

RECORDS has ARM-seed-SEED.json of the arm and of fedit, with seeds 10 to 17, and of the arms beside it
(recipes/study/collect.py, or text_cost.py for the other cost). The arm wins if D > 0 with p < 0.05, if D
exceeds that of fedsd and of fedsdr with p < 0.05, and if in no domain the one-sided 95 % bound of D over
seeds is below -0.03 nats. The verdict says how many seeds there are.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from fedsdr.analysis.frontier import LEVEL, MARGIN
from fedsdr.experiments.frontier import ScoredRun, by_domain, domain_sheet, frontier, frontier_sheet
from fedsdr.report.sheets import Sheet, p_value, render_text, signed, signed_interval
from fedsdr.stats import paired
from fedsdr.storage import Event, read_json

CONTROL = {"global": "fedit"}
SEEDS = range(10, 18)
BESIDE = ("fedsd", "fedsdr", "fedit-double")
"""A winner exceeds the first two."""


def main(records: Path, arm: str) -> None:
    """Print the tables, and the verdict."""
    runs = {
        (name, seed): ScoredRun(record["arm"], record["seed"], record["models"])
        for name in ("fedit", arm, *BESIDE)
        for seed in SEEDS
        if (path := records / f"{name}-seed-{seed}.json").exists() and (record := read_json(path))
    }
    rows = {name: scored(runs, name) for name in (arm, *BESIDE)}
    beside = [exceeds(runs, arm, name) for name in BESIDE if rows[name]]
    own = together(runs, arm)
    domains = [r | {"bound": bound(r["by_seed"])} for r in by_domain(own, CONTROL)]
    sheets = (
        frontier_sheet([row for row in rows.values() if row]),
        exceeds_sheet(beside),
        domain_sheet(domains),
    )
    for sheet in sheets:
        print(render_text(sheet, markdown=True), end="\n\n")
    print(f"{arm}, {len(own) // 2} of {len(SEEDS)} seeds: {verdict(rows[arm], beside, domains)}")


def together(runs: dict[tuple[str, int], ScoredRun], *arms: str) -> list[ScoredRun]:
    """Runs of the control and of the arms, of the seeds that all of them have."""
    names = ("fedit", *arms)
    seeds = [seed for seed in SEEDS if all((name, seed) in runs for name in names)]
    return [runs[name, seed] for name in names for seed in seeds]


def scored(runs: dict[tuple[str, int], ScoredRun], *arms: str) -> Event | None:
    """The first arm against scaled fedit at lambda = 1, on the seeds that all arms have; None without any."""
    found = frontier(some, CONTROL, ()) if (some := together(runs, *arms)) else []
    return next((r for r in found if r["scale"] == 1.0 and r["arm"] == arms[0]), None)


def exceeds(runs: dict[tuple[str, int], ScoredRun], arm: str, other: str) -> Event:
    """D of an arm minus D of another, over the seeds that both have."""
    mine, its = scored(runs, arm, other), scored(runs, other, arm)
    assert mine
    assert its
    test = None if mine["num_beyond"] or its["num_beyond"] else paired(mine["by_seed"], its["by_seed"])
    values = (test.mean, test.low, test.high, test.p) if test else (None,) * 4
    return {"arm": arm, "other": other, "num_seeds": len(mine["by_seed"])} | dict(
        zip(("difference", "low", "high", "p"), values, strict=True)
    )


def bound(values: Sequence[float]) -> float:
    """Lower end of the one-sided 95 % interval of a mean over seeds, by Student's t."""
    return float(stats.ttest_1samp(values, 0).confidence_interval(0.9).low)


def exceeds_sheet(records: Sequence[Event]) -> Sheet:
    """One row for each arm beside it."""
    return Sheet(
        "D minus that of the arms beside it",
        "llrrrr",
        ("arm", "other", "seeds", "difference", "95 % (seeds)", "p"),
        tuple(
            (r["arm"], r["other"], str(r["num_seeds"]), signed(r["difference"]),
             signed_interval(r["low"], r["high"]), p_value(r["p"]))
            for r in records
        ),
        tuple(records),
    )  # fmt: skip


def verdict(mine: Event | None, beside: Sequence[Event], domains: Sequence[Event]) -> str:
    """Whether the arm wins, and what it lacks."""
    lacks = [] if mine and mine["verdict"] == "better" else ["it is not better than scaled fedit"]
    lacks += [
        f"D does not exceed that of {r['other']}"
        for r in beside
        if r["other"] in BESIDE[:2] and not (r["p"] is not None and r["p"] < LEVEL and r["difference"] > 0)
    ]
    lacks += [
        f"in {r['domain']} the bound of D is {r['bound']:+.3f}" for r in domains if r["bound"] < -MARGIN
    ]
    return "; ".join(lacks) or "it wins"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
