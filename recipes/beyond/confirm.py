"""The confirmation of docs/results/beyond.md: does the chosen arm lie above the frontier?

    python recipes/beyond/confirm.py RECORDS ARM [CONTROL]

RECORDS has ARM-seed-SEED.json of the arm and of fedit, with seeds 10 to 17, and of the arms beside it
(recipes/study/collect.py, or text_cost.py for the other cost). It tests the first conditions of a win:
D > 0 with p < 0.05; D exceeds that of fedsd and of fedsdr with p < 0.05; in no domain is the one-sided 95 %
bound of D over seeds below -0.03 nats. The document has the others: the same by the second cost; retention,
printed where records have it; and the first against CONTROL = fedit-double, plain federated LoRA with twice
the steps.
"""

import sys
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

from scipy import stats

from fedsdr.analysis.frontier import LEVEL, MARGIN
from fedsdr.experiments.frontier import (
    ScoredRun,
    by_domain,
    domain_sheet,
    frontier,
    frontier_sheet,
    mean_points,
)
from fedsdr.report.frontier import frontier_svg
from fedsdr.report.sheets import Sheet, p_value, render_text, signed, signed_interval
from fedsdr.stats import paired
from fedsdr.storage import Event, read_json, write_file

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))
from tables import retention_sheet

SEEDS = range(10, 18)
LEAST_BESIDE = 4
"""Seeds of fedsd and of fedsdr that decide, from the first on (the document says why)."""
BESIDE = ("fedsd", "fedsdr", "fedit-double")
"""A winner exceeds the first two."""
Runs = dict[tuple[str, int], ScoredRun]
"""By arm and seed."""


def main(records: Path, arm: str, control: str = "fedit") -> None:
    """Print the tables and the verdict, and draw RECORDS/frontier.svg."""
    found = [
        read_json(path)
        for name in ("fedit", arm, *BESIDE)
        for seed in SEEDS
        if (path := records / f"{name}-seed-{seed}.json").exists()
    ]
    runs = {(r["arm"], r["seed"]): ScoredRun(r["arm"], r["seed"], r["models"]) for r in found}
    beside = [name for name in BESIDE if name != control and together(runs, control, name)]
    rows = [scored(runs, control, name) for name in (arm, *beside)]
    differences = [exceeds(runs, control, arm, name) for name in beside]
    own = together(runs, control, arm)
    domains = [r | {"bound": bound(r["by_seed"])} for r in by_domain(own, {"global": control})]
    sheets = [frontier_sheet(rows), domain_sheet(domains)]
    sheets += [exceeds_sheet(differences)] if differences else []
    sheets += [retention_sheet(found)] if any("retention" in record for record in found) else []
    for sheet in sheets:
        print(render_text(sheet, markdown=True), end="\n\n")
    write_file(records / "frontier.svg", frontier_svg(mean_points([*runs.values()]), {"global": "fedit"}))
    num = f"{len(own) // 2} of {len(SEEDS)} seeds"
    print(f"{arm}, {num}, against scaled {control}: {verdict(rows[0], differences, domains)}")


def together(runs: Runs, *arms: str) -> list[ScoredRun]:
    """Runs of these arms, of the seeds that all of them have."""
    seeds = [seed for seed in SEEDS if all((name, seed) in runs for name in arms)]
    return [runs[name, seed] for name in arms for seed in seeds]


def scored(runs: Runs, control: str, arm: str, *others: str) -> Event:
    """An arm against the scaled control at lambda = 1 after all rounds, on the seeds that all have."""
    found = frontier(together(runs, control, arm, *others), {"global": control}, ())
    whole = [record for record in found if record["scale"] == 1.0 and record["arm"] == arm]
    return max(whole, key=itemgetter("round"))


def exceeds(runs: Runs, control: str, arm: str, other: str) -> Event:
    """D of an arm minus D of another, over the seeds that both have."""
    mine, its = scored(runs, control, arm, other), scored(runs, control, other, arm)
    test = None if mine["num_beyond"] or its["num_beyond"] else paired(mine["by_seed"], its["by_seed"])
    values = (test.mean, test.low, test.high, test.p) if test else (None,) * 4
    record = dict(zip(("difference", "low", "high", "p"), values, strict=True))
    return {"arm": arm, "other": other, "num_seeds": len(mine["by_seed"]), **record}


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


def verdict(mine: Event, beside: Sequence[Event], domains: Sequence[Event]) -> str:
    """Whether the arm wins, and what it lacks."""
    lacks = [] if mine["verdict"] == "better" else [f"against the control it is {mine['verdict']}"]
    num_seeds = {r["other"]: r["num_seeds"] for r in beside}
    lacks += [
        f"of {name} {num_seeds.get(name, 0)} of {LEAST_BESIDE} seeds were run"
        for name in BESIDE[:2]
        if num_seeds.get(name, 0) < LEAST_BESIDE
    ]
    lacks += [
        f"D does not exceed that of {r['other']}"
        for r in beside
        if r["other"] in BESIDE[:2] and not (r["p"] is not None and r["p"] < LEVEL and r["difference"] > 0)
    ]
    lacks += [
        f"in {r['domain']} the bound of D is {r['bound']:+.3f}" for r in domains if r["bound"] < -MARGIN
    ]
    return "; ".join(lacks) or "the conditions that are tested here hold"


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
