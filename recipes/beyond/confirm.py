"""Tables of the confirmation of docs/results/beyond.md: do the chosen arms lie above the frontier?

    python recipes/beyond/confirm.py CELLS ARM [ARM]

CELLS has ARM/seed-SEED/record.json of the chosen arms, and of fedit, fedsd and fedsdr with the same seeds. An
arm wins if D > 0 with p < 0.05 (Holm over the arms), if its D exceeds that of fedsd and that of fedsdr with
p < 0.05, and if in no domain the one-sided 95 % bound of D over seeds is below -0.03 nats.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from fedsdr.analysis.frontier import LEVEL, MARGIN
from fedsdr.experiments.frontier import ScoredRun, by_domain, domain_sheet, frontier, frontier_sheet
from fedsdr.report.sheets import Sheet, p_value, render_text, signed, signed_interval
from fedsdr.stats import holm, paired
from fedsdr.storage import Event, read_json

CONTROL = {"global": "fedit"}
PAPER = ("fedsd", "fedsdr")
"""The paper's methods, which a winner exceeds too."""


def main(cells: Path, *arms: str) -> None:
    """Print the tables, and the verdict on each arm."""
    records = [read_json(path) for path in sorted(cells.glob("*/seed-*/record.json"))]
    runs = [ScoredRun(record["arm"], record["seed"], record["models"]) for record in records]
    found = {
        r["arm"]: r
        for some in (arms, PAPER)  # Holm's correction is over the arms alone
        for r in frontier([run for run in runs if run.arm in ("fedit", *some)], CONTROL, ())
        if r["scale"] == 1.0
    }
    differences = [exceeds(found[arm], found[other]) for arm in arms for other in PAPER]
    for other in PAPER:
        own = [r for r in differences if r["other"] == other and r["p"] is not None]
        for r, p in zip(own, holm([r["p"] for r in own]), strict=True):
            r["p"] = p
    domains = [r | {"bound": bound(r["by_seed"])} for r in by_domain(runs, CONTROL)]
    for sheet in (frontier_sheet([*found.values()]), exceeds_sheet(differences), domain_sheet(domains)):
        print(render_text(sheet, markdown=True), end="\n\n")
    for arm in arms:
        print(verdict(found[arm], differences, domains))


def exceeds(mine: Event, other: Event) -> Event:
    """D of an arm minus D of another, over seeds."""
    record = {"arm": mine["arm"], "other": other["arm"]}
    if mine["num_beyond"] or other["num_beyond"]:
        return record | dict.fromkeys(("difference", "low", "high", "p"))
    test = paired(mine["by_seed"], other["by_seed"])
    assert test
    return record | {"difference": test.mean, "low": test.low, "high": test.high, "p": test.p}


def bound(values: Sequence[float]) -> float:
    """Lower end of the one-sided 95 % interval of a mean over seeds, by Student's t."""
    return float(stats.ttest_1samp(values, 0).confidence_interval(0.9).low)


def exceeds_sheet(records: Sequence[Event]) -> Sheet:
    """One row for each arm and method of the paper."""
    return Sheet(
        "D minus that of the paper's methods",
        "llrrr",
        ("arm", "other", "difference", "95 % (seeds)", "p (Holm)"),
        tuple(
            (r["arm"], r["other"], signed(r["difference"]), signed_interval(r["low"], r["high"]),
             p_value(r["p"]))
            for r in records
        ),
        tuple(records),
    )  # fmt: skip


def verdict(mine: Event, differences: Sequence[Event], domains: Sequence[Event]) -> str:
    """Whether an arm wins, and what it lacks."""
    lacks = [] if mine["verdict"] == "better" else [f"against scaled fedit it is {mine['verdict']}"]
    lacks += [
        f"D does not exceed that of {r['other']}"
        for r in differences
        if r["arm"] == mine["arm"] and not (r["p"] is not None and r["p"] < LEVEL and r["difference"] > 0)
    ]
    lacks += [
        f"in {r['domain']} the bound of D is {r['bound']:+.3f}"
        for r in domains
        if r["arm"] == mine["arm"] and r["bound"] < -MARGIN
    ]
    return f"{mine['arm']}: " + ("; ".join(lacks) or "it wins")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
