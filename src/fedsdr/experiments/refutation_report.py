"""The test that could refute the method, read from the cells of a grid.

Arms are compared whose settings differ in method and learning rate alone.
"""

from collections.abc import Sequence
from statistics import fmean

from fedsdr.analysis.claims import Word
from fedsdr.experiments.grid_runs import VERDICTS, Cell, over_examples
from fedsdr.experiments.refutation import BETTER, effect_size, overall, seeds_to_decide, verdict_of_metric
from fedsdr.report.sheets import NONE, Sheet, number
from fedsdr.stats import Difference, holm, paired
from fedsdr.storage import Event

METHOD, OTHERS = "fedsdr", ("fedsd", "dual-raw")
NAMES = {"unsupported_rate": "unsupported answers", "score": "exact score"}


def refutation(cells: Sequence[Cell]) -> tuple[Sheet, list[Event]]:
    """Compare global models of fedsdr with those of fedsd and dual-raw on the same seeds and prompts.

    Returns:
        A sheet without rows where the grid has no such arms, and a verdict for each pair of arms:
        {"claim", "verdict", "text"}.
    """
    records: list[Event] = []
    tests: list[Difference | None] = []
    pairs = _pairs(cells)
    for arm, other in pairs:
        for metric in BETTER:
            mine, others = (_by_seed(cells, name, metric) for name in (arm, other))
            seeds = sorted(mine.keys() & others.keys())
            if not seeds:
                continue
            gains = [mine[seed] - others[seed] for seed in seeds]
            both = over_examples(cells, arm, other, "global", VERDICTS[metric])
            alone = paired([mine[seed] for seed in seeds], [others[seed] for seed in seeds])
            tests.append(both)
            records.append(
                {
                    "arm": arm,
                    "against": other,
                    "metric": metric,
                    "num_seeds": len(seeds),
                    "difference": fmean(gains),
                    "effect_size": effect_size(gains),
                    "low_seeds": alone.low if alone else None,
                    "high_seeds": alone.high if alone else None,
                    "low": both.low if both else None,
                    "high": both.high if both else None,
                    "seeds_to_decide": seeds_to_decide(gains),
                }
            )
    corrected = iter(holm([test.p for test in tests if test]))
    for record, test in zip(records, tests, strict=True):
        record["p_holm"] = next(corrected) if test else None
        record["verdict"] = verdict_of_metric(record["metric"], test, record["p_holm"])
    return _sheet(records), [_verdict(records, arm, other) for arm, other in pairs]


def _pairs(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    kinds = {cell.arm: (cell.method, cell.rest) for cell in cells}
    return [
        (arm, other)
        for arm, (method, rest) in kinds.items()
        for other, (against, same) in kinds.items()
        if method == METHOD and against in OTHERS and rest == same
    ]


def _by_seed(cells: Sequence[Cell], arm: str, metric: str) -> dict[int, float]:
    means = {cell.seed: cell.final.get("global", {}).get("mean", {}) for cell in cells if cell.arm == arm}
    return {seed: mean[metric] for seed, mean in means.items() if metric in mean}


def _sheet(records: Sequence[Event]) -> Sheet:
    return Sheet(
        "Does rectification help? Global models, mean over domains",
        "lllrrrrrrrl",
        ("arm", "against", "metric", "seeds", "difference", "d_z", "95 % (seeds)", "95 % (seeds, examples)",
         "p (Holm)", "seeds to decide", "verdict"),
        tuple(
            (
                r["arm"],
                r["against"],
                NAMES[r["metric"]],
                str(r["num_seeds"]),
                f"{r['difference']:+.3f}",
                number(r["effect_size"], 1),
                _interval(r["low_seeds"], r["high_seeds"]),
                _interval(r["low"], r["high"]),
                number(r["p_holm"], 3),
                NONE if r["seeds_to_decide"] is None else str(r["seeds_to_decide"]),
                r["verdict"],
            )
            for r in records
        ),
        tuple(records),
        note="Verdict: by the interval over seeds and examples, whose p is corrected by Holm for all rows;"
        " below 0.05 it is supported or refuted by the sign. d_z: mean over standard deviation of the seeds'"
        " differences. Seeds to decide: the fewest whose interval over seeds, uncorrected, would exclude 0 if"
        " mean and spread stayed as they are; half of all repetitions would need more. Where that interval"
        " excludes 0 and the other does not, more test examples are needed, not more seeds.",
    )  # fmt: skip


def _verdict(records: Sequence[Event], arm: str, other: str) -> Event:
    own = [record for record in records if (record["arm"], record["against"]) == (arm, other)]
    found: list[Word] = [record["verdict"] for record in own]
    parts = [
        f"{NAMES[r['metric']]} {r['difference']:+.3f} {_interval(r['low'], r['high'])}{_needed(r)}"
        for r in own
    ]
    return {
        "claim": f"{arm}'s global model is better than {other}'s in unsupported answers or exact score, and"
        " worse in neither",
        "verdict": overall(found) if own else "undecided",
        "text": "; ".join(parts) + f" ({own[0]['num_seeds']} seeds)" if own else "no common seeds",
    }


def _needed(record: Event) -> str:
    """What would decide an undecided row."""
    if record["verdict"] != "undecided":
        return ""
    needed = record["seeds_to_decide"]
    if record["effect_size"] is None:
        return ", one seed, or equal differences, leave nothing to judge by"
    if needed is None:
        return ", over 1,000 seeds would be needed"
    if needed > record["num_seeds"]:
        return f", {needed - record['num_seeds']} more seeds would decide it over seeds, with even odds"
    if record["low"] is None or record["low"] <= 0 <= record["high"]:
        return ", decided over seeds; more test examples would decide it over examples"
    return ", decided but for Holm's correction"


def _interval(low: float | None, high: float | None) -> str:
    return NONE if low is None else f"[{low:+.3f}, {high:+.3f}]"
