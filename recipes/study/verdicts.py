"""Verdicts of the study from its records: the last section of docs/results/study.md, and its drawing.

    python recipes/study/verdicts.py docs/results/study docs/results/study.md

The folder holds the cells' records, ARM-seed-N.json; it gets frontier.svg. In the document all that follows
the heading "Verdicts" is written anew.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from textwrap import fill

import numpy as np

from fedsdr.analysis.frontier import LEVEL, crossed_interval, domain_weights
from fedsdr.experiments.frontier import Point, ScoredRun, frontier, frontier_sheet, mean_points, point_of
from fedsdr.experiments.refutation import seeds_to_decide
from fedsdr.report.frontier import frontier_svg
from fedsdr.report.sheets import NONE, Sheet, number, render_text, signed, signed_interval
from fedsdr.stats import holm, paired
from fedsdr.storage import Event, read_json, write_file

CONTROLS = {"global": "fedit", "personalised": "local-only"}
PRIMARY = ("fedit", "fedsd", "fedsdr", "dual-raw", "centralised", "local-only")
ONE_WORD = ("finance",)
WIDTH = 120
HEADING = "## Verdicts\n"
Model = tuple[str, str]
"""Arm, and its "global" or "personalised" model, at lambda = 1 after the last round."""


@dataclass(frozen=True)
class Claim:
    """A claim, and the difference that decides it."""

    name: str
    model: Model
    against: Model | None
    """None: the control at the cost of the arm."""
    what: str = "gain"
    better: int = 1
    """Sign of a difference that supports the claim."""


FEDSD, FEDSDR, DUAL_RAW, FEDIT = ((arm, "global") for arm in ("fedsd", "fedsdr", "dual-raw", "fedit"))
OWN_FEDSDR, OWN_DUAL_RAW, OWN = ((arm, "personalised") for arm in ("fedsdr", "dual-raw", "local-only"))
CLAIMS = (
    Claim("1. FedSD gives more gain at equal cost than plain federated LoRA", FEDSD, None),
    Claim("2. FedSDR's global model does", FEDSDR, None),
    Claim("3. FedSDR's global model gains more than FedSD's", FEDSDR, FEDSD),
    Claim("4a. Self-distillation helps in FedSDR: global model", FEDSDR, DUAL_RAW),
    Claim("4b. The same: personalised models", OWN_FEDSDR, OWN_DUAL_RAW),
    Claim("5. FedSDR's personalised models give more at equal cost than training alone", OWN_FEDSDR, None),
    Claim("6. FedSD costs less than plain federated LoRA", FEDSD, FEDIT, "cost", -1),
    Claim("7. Federation gains over training alone", FEDIT, OWN),
)
FAMILIES = (("4a.", "4b."),)
"""Claims, other than those at equal cost, that are one family for Holm's correction."""


def main(folder: Path, document: Path) -> None:
    """Read the records and write section and drawing."""
    records = [read_json(path) for path in sorted(folder.glob("*-seed-*.json"))]
    runs = [ScoredRun(record["arm"], record["seed"], record["models"]) for record in records]
    primary = [run for run in runs if run.arm in PRIMARY]
    write_file(folder / "frontier.svg", frontier_svg(mean_points(primary), CONTROLS))
    other = [run for run in runs if run.arm not in PRIMARY or run.arm in CONTROLS.values()]
    compared = frontier(primary, CONTROLS, ONE_WORD)
    explored = frontier(other, CONTROLS, ONE_WORD) if len(other) > len(primary) else []
    explored = [{**r, "p_holm": None, "verdict": NONE} for r in explored if r["arm"] not in PRIMARY]
    sheets = [verdict_sheet(runs, compared), frontier_sheet([*compared, *explored]), arm_sheet(runs, records)]
    before = document.read_text(encoding="utf-8").partition(HEADING)[0]
    made = (
        f"Made by `python recipes/study/verdicts.py docs/results/study docs/results/study.md`. {_count(runs)}"
    )
    parts = [(before + HEADING).strip(), fill(made, WIDTH), "![Gain over cost](study/frontier.svg)"]
    for sheet in sheets:
        if sheet.rows:
            table = render_text(sheet, markdown=True).partition("\n\n")[2]
            parts += [f"### {sheet.caption}", table, fill(sheet.note, WIDTH)]
    write_file(document, "\n\n".join(parts) + "\n")


def verdict_sheet(runs: Sequence[ScoredRun], compared: Sequence[Event]) -> Sheet:
    """One row for each claim."""
    records = [
        _between(claim, runs) if claim.against else _at_equal_cost(claim, compared) for claim in CLAIMS
    ]
    for family in FAMILIES:
        rows = [r for r in records if r["claim"].startswith(family) and r["p"] is not None]
        for record, p in zip(rows, holm([r["p"] for r in rows]), strict=True):
            record["p"] = p
    for claim, record in zip(CLAIMS, records, strict=True):
        record["verdict"] = record.get("verdict") or _verdict(claim, record)
    return Sheet(
        "The claims",
        "llrrrrrr",
        ("claim", "verdict", "effect", "95 %", "p (Holm)", "seeds", "examples", "seeds to decide"),
        tuple(
            (
                r["claim"], f"**{r['verdict']}**", signed(r["difference"]),
                signed_interval(r["low"], r["high"]), number(r["p"], 3),
                str(r["num_seeds"]), str(r["num_examples"]), str(r["seeds_to_decide"] or NONE),
            )
            for r in records
        ),
        tuple(records),
        note="Effects in nats per token: gain (claim 6: cost) of the arm minus the other's. Examples: test"
        " rows (claim 6: prompts). Holm's correction is over the primary arms of one kind of model at equal"
        " cost, and over 4a and 4b. Seeds to decide: the fewest whose interval over seeds would exclude 0 if"
        " mean and spread stayed as they are, which is the power that an undecided claim lacks.",
    )  # fmt: skip


def arm_sheet(runs: Sequence[ScoredRun], records: Sequence[Event]) -> Sheet:
    """Cost and gain of each arm at lambda = 1 after the last round, by domain, as means over seeds."""
    domains = sorted(runs[0].models[0]["test"])
    rows: list[Event] = []
    for model in CONTROLS:
        for arm in dict.fromkeys(run.arm for run in runs):
            if not (points := _last((arm, model), runs)):
                continue
            gains = {
                name: fmean(p.test[np.asarray(p.domains) == name].mean() for p in points.values())
                for name in domains
            }
            training = [r["seconds"]["training"] for r in records if r["arm"] == arm]
            rows.append(
                {"arm": arm, "model": model, "num_seeds": len(points), **gains,
                 "cost": fmean(p.cost.mean() for p in points.values()), "gain": fmean(gains.values()),
                 "worst": min(gains, key=gains.__getitem__), "seconds": fmean(training)}
            )  # fmt: skip
    return Sheet(
        "Arms at lambda = 1 after the last round: cost, gain and gain by domain, means over seeds",
        "llrrr" + "r" * len(domains) + "lr",
        ("arm", "model", "seeds", "cost", "gain", *domains, "worst client", "training s"),
        tuple(
            (r["arm"], r["model"], str(r["num_seeds"]), number(r["cost"], 3), number(r["gain"], 3),
             *(number(r[name], 3) for name in domains), r["worst"], number(r["seconds"], 0))
            for r in rows
        ),
        tuple(rows),
        note="Training s: seconds of one thread beside other work, rewriting not included.",
    )  # fmt: skip


def _at_equal_cost(claim: Claim, compared: Sequence[Event]) -> Event:
    arm, model = claim.model
    of_arm = [r for r in compared if (r["arm"], r["model"], r["scale"], r["of"]) == (arm, model, 1, "all")]
    if not of_arm:
        return _nothing(claim)
    found = max(of_arm, key=lambda r: r["round"])
    keys = ("difference", "low", "high", "num_seeds", "num_examples", "seeds_to_decide")
    record = {"claim": claim.name, **{key: found[key] for key in keys}, "p": found["p_holm"]}
    words = {"better": "supported", "worse": "refuted", "no worse": "undecided (no worse)"}
    return record | {"verdict": words.get(found["verdict"], found["verdict"])}


def _between(claim: Claim, runs: Sequence[ScoredRun]) -> Event:
    assert claim.against
    mine, others = _last(claim.model, runs), _last(claim.against, runs)
    seeds = sorted(mine.keys() & others.keys())
    if not seeds:
        return _nothing(claim)
    is_gain = claim.what == "gain"
    a, b = (np.stack([p[s].test if is_gain else p[s].cost for s in seeds]) for p in (mine, others))
    strata = mine[seeds[0]].domains if is_gain else [""] * a.shape[1]
    weights = domain_weights(strata)
    values = list((a - b) @ weights)
    test = paired(list(a @ weights), list(b @ weights))
    low, high = crossed_interval(a - b, strata) or (None, None)
    return {
        "claim": claim.name, "difference": fmean(values), "low": low, "high": high, "p": test and test.p,
        "num_seeds": len(seeds), "num_examples": a.shape[1], "seeds_to_decide": seeds_to_decide(values),
    }  # fmt: skip


def _verdict(claim: Claim, record: Mapping[str, float | None]) -> str:
    low, high, p = (record[key] for key in ("low", "high", "p"))
    if low is None or high is None or p is None or p >= LEVEL or low <= 0 <= high:
        return "undecided"
    return "supported" if low * claim.better > 0 else "refuted"


def _nothing(claim: Claim) -> Event:
    empty = dict.fromkeys(("difference", "low", "high", "p", "seeds_to_decide"))
    return {"claim": claim.name, **empty, "num_seeds": 0, "num_examples": 0, "verdict": "not run"}


def _last(model: Model, runs: Sequence[ScoredRun]) -> dict[int, Point]:
    """Seed -> the model at lambda = 1 after the last round."""
    found = {}
    for run in runs:
        if run.arm == model[0] and (points := run.points(model[1])):
            found[run.seed] = point_of(run, points[max(number_ for number_, _ in points), 1.0])
    return found


def _count(runs: Sequence[ScoredRun]) -> str:
    """Which cells there are."""
    seeds: dict[str, list[int]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        seeds.setdefault(run.arm, []).append(run.seed)
    there = "; ".join(f"{arm}: {', '.join(map(str, some))}" for arm, some in sorted(seeds.items()))
    missing = [arm for arm in PRIMARY if len(seeds.get(arm, [])) < 8]
    return f"Seeds that are there: {there}." + (
        f" Fewer than the eight planned: {', '.join(missing)}." if missing else ""
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
