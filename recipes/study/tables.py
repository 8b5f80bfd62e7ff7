"""Tables of the study that are not of its claims: the arms, what they keep, and the power of the tests."""

from collections.abc import Sequence
from statistics import fmean, stdev

import numpy as np

from fedsdr.analysis.frontier import MARGIN, Array, crossed_interval, domain_weights
from fedsdr.experiments.frontier import CONTROLS, Point, ScoredRun, point_of
from fedsdr.experiments.refutation import MOST_SEEDS
from fedsdr.report.sheets import NONE, Sheet, number, signed, signed_interval
from fedsdr.stats import paired, power
from fedsdr.storage import Event

Model = tuple[str, str]
"""Arm, and its "global" or "personalised" model, at lambda = 1 after the last round."""
Values = dict[int, tuple[Array, list[str]]]
"""Seed -> a number of each example, and the stratum of each: its domain, or its task."""
PLANNED = 8
"""Seeds of a primary arm."""
WANTED = 0.8
"""Power that is wanted."""


def last_points(model: Model, runs: Sequence[ScoredRun]) -> dict[int, Point]:
    """Seed -> the model at lambda = 1 after the last round."""
    found = {}
    for run in runs:
        if run.arm == model[0] and (points := run.points(model[1])):
            found[run.seed] = point_of(run, points[max(number_ for number_, _ in points), 1.0])
    return found


def kept(records: Sequence[Event]) -> dict[str, Values]:
    """Arm -> of each question of retention, whether the tuned model is right less whether the base is."""
    found: dict[str, Values] = {}
    for record in records:
        if answers := [a for a in record.get("retention", ()) if a["metric"] != "loss"]:
            values = np.concatenate([np.subtract(a["tuned"], a["base"]) for a in answers])
            tasks = [a["task"] for a in answers for _ in a["base"]]
            found.setdefault(record["arm"], {})[record["seed"]] = values, tasks
    return found


def arm_sheet(runs: Sequence[ScoredRun], records: Sequence[Event]) -> Sheet:
    """Both costs and the gain of each arm at lambda = 1 after the last round, by domain."""
    domains, changes = sorted(runs[0].models[0]["test"]), kept(records)
    rows: list[Event] = []
    for model in CONTROLS:
        for arm in dict.fromkeys(run.arm for run in runs):
            if not (points := last_points((arm, model), runs)):
                continue
            gains = {
                name: fmean(p.test[np.asarray(p.domains) == name].mean() for p in points.values())
                for name in domains
            }
            own = changes.get(arm, {}).values() if model == "global" else ()
            rows.append(
                {"arm": arm, "model": model, "num_seeds": len(points), **gains,
                 "cost": fmean(p.cost.mean() for p in points.values()), "gain": fmean(gains.values()),
                 "accuracy": fmean(v @ domain_weights(tasks) for v, tasks in own) if own else None,
                 "worst": min(gains, key=gains.__getitem__)}
            )  # fmt: skip
    return Sheet(
        "Arms at lambda = 1 after the last round: costs, gain and gain by domain, means over seeds",
        "llrrrr" + "r" * len(domains) + "l",
        ("arm", "model", "seeds", "cost", "accuracy", "gain", *domains, "least gain"),
        tuple(
            (r["arm"], r["model"], str(r["num_seeds"]), number(r["cost"], 3), signed(r["accuracy"]),
             number(r["gain"], 3), *(number(r[name], 3) for name in domains), r["worst"])
            for r in rows
        ),
        tuple(rows),
        note="Accuracy: the second cost, the change of the share of right answers on retention tasks, where"
        " it was measured. Training times are left out: cells shared the machine with other work.",
    )  # fmt: skip


def retention_sheet(records: Sequence[Event]) -> Sheet:
    """The second cost: accuracy on retention tasks, tuned minus base, and minus that of plain LoRA."""
    changes, control = kept(records), CONTROLS["global"]
    rows = []
    for arm, values in changes.items():
        own = difference(values)
        others = changes.get(control, {}) if arm != control else {}
        other = difference(values, others) if values.keys() & others.keys() else {}
        tasks, counts = np.unique(next(iter(values.values()))[1], return_counts=True)
        losses = [
            np.average(np.subtract(answer["tuned"], answer["base"]), weights=answer["num_words"])
            for record in records
            for answer in record.get("retention", ())
            if (record["arm"], answer["metric"]) == (arm, "loss")
        ]
        rows.append({"arm": arm, **own, **{f"{key}_control": value for key, value in other.items()},
                     "num_tasks": len(tasks), "num_questions": int(counts.sum()),
                     "loss": fmean(losses) if losses else None})  # fmt: skip
    return Sheet(
        "The second cost: accuracy on retention tasks at lambda = 1 after the last round",
        "lrrrrrrrr",
        ("arm", "seeds", "tasks", "questions", "change", "95 %", f"change - {control}'s", "its 95 %",
         "loss of WikiText"),
        tuple(
            (r["arm"], str(r["num_seeds"]), str(r["num_tasks"]), str(r["num_questions"]),
             signed(r["difference"]), signed_interval(r["low"], r["high"]),
             signed(r.get("difference_control")),
             signed_interval(r.get("low_control"), r.get("high_control")), signed(r["loss"]))
            for r in rows
        ),
        tuple(rows),
        note="Share of right answers, tuned minus base, mean over tasks; intervals by redraws"
        " of seeds and questions. Loss: nats a word, tuned minus base.",
    )  # fmt: skip


def power_sheet(claims: Sequence[Event]) -> Sheet:
    """What the seeds of each claim can find, and how many an undecided one would need.

    Args:
        claims: With "claim", and "by_seed": the differences.
    """
    rows = []
    for claim in claims:
        if (num := len(claim["by_seed"])) < 2 or not (spread := stdev(claim["by_seed"])):
            continue
        effect = fmean(claim["by_seed"]) / spread
        rows.append(
            {"claim": claim["claim"].split(".")[0], "num_seeds": num, "spread": spread,
             "found": found_by(num) * spread, "found_planned": found_by(PLANNED) * spread,
             "seeds": seeds_for(effect), "seeds_for_margin": seeds_for(MARGIN / spread)}
        )  # fmt: skip
    return Sheet(
        f"Power: what the tests over seeds find with {WANTED:.0%} probability",
        "lrrrrrr",
        ("claim", "seeds", "sd over seeds", "smallest effect found", f"by {PLANNED} seeds",
         "seeds for the effect seen", f"for {MARGIN:g}"),
        tuple(
            (r["claim"], str(r["num_seeds"]), number(r["spread"], 3), number(r["found"], 3),
             number(r["found_planned"], 3), str(r["seeds"] or NONE), str(r["seeds_for_margin"] or NONE))
            for r in rows
        ),
        tuple(rows),
        note="Of the paired t-test at 5 %, before Holm's correction, if the spread over seeds is that of"
        " these seeds, of which two or three tell little. It covers the draw of seeds alone: an interval that"
        " is wide by its test examples needs more of these, and no more seeds."
        f" {NONE}: more than {MOST_SEEDS:,}.",
    )  # fmt: skip


def seeds_for(effect: float) -> int | None:
    """The fewest seeds whose test finds a difference of so many standard deviations with `WANTED` power."""
    return next((num for num in range(2, MOST_SEEDS + 1) if power(effect, num) >= WANTED), None)


def found_by(num: int) -> float:
    """The smallest difference, in standard deviations, that so many seeds find with `WANTED` power."""
    from scipy.optimize import brentq

    return float(brentq(lambda effect: power(effect, num) - WANTED, 0.01, 100))


def difference(values: Values, others: Values | None = None) -> Event:
    """Values minus others', of the same examples and seeds, or values alone: mean over strata, and test.

    There is at least one common seed.
    """
    seeds = sorted(values.keys() & others.keys() if others else values)
    strata = values[seeds[0]][1]
    if any(some[seed][1] != strata for some in (values, others or values) for seed in seeds):
        raise SystemExit("two records to compare were scored on other examples")
    a = np.stack([values[seed][0] for seed in seeds])
    b = np.stack([others[seed][0] for seed in seeds]) if others else np.zeros_like(a)
    weights = domain_weights(strata)
    by_seed = list((a - b) @ weights)
    test = paired(list(a @ weights), list(b @ weights))
    low, high = crossed_interval(a - b, strata) or (None, None)
    return {
        "difference": fmean(by_seed), "low": low, "high": high, "p": test and test.p,
        "num_seeds": len(seeds), "num_examples": len(strata), "by_seed": by_seed,
    }  # fmt: skip
