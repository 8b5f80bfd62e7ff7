"""Tables that compare the arms of a grid: means over seeds, paired differences to a baseline, costs.

In: the results of every cell. An arm is one choice of settings, a cell one arm with one seed. What the
intervals and tests cover is the seeds (order of the data, initial adapters, draw of clients), not the draw
of the test examples, which all cells share.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fedsdr.measure.scores import Table
from fedsdr.report.events import cost_records, data_size
from fedsdr.report.tables import NONE, Sheet, number
from fedsdr.storage import Event

METRICS = {
    "score": ("exact score", 3),
    "loss": ("loss, true responses", 3),
    "loss_distilled": ("loss, rewritings", 3),
    "unsupported_rate": ("unsupported", 3),
    "words": ("words", 1),
    "choice_score": ("choice by likelihood", 3),
}


@dataclass(frozen=True)
class Cell:
    """What a finished cell has to show."""

    arm: str
    seed: int
    base: Table
    final: Table
    events: Sequence[Event]


@dataclass(frozen=True)
class Difference:
    """An arm against the baseline, paired by seed."""

    mean: float
    low: float
    high: float
    """Ends of the 95 % interval by Student's t."""
    p: float
    """Two-sided p of the paired t test, before Holm's correction."""


def paired(values: Sequence[float], baseline: Sequence[float]) -> Difference | None:
    """Compare values of the same seeds: d_i = a_i - b_i, t = mean(d) / (sd(d) / sqrt(n)).

    Returns:
        The difference, judged by Student's t with n - 1 degrees of freedom. None for fewer than two
        seeds, and where all differences are equal, which leaves no spread to judge by.
    """
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    num = len(differences)
    if num < 2 or len(set(differences)) == 1:
        return None
    from scipy import stats

    mean, error = fmean(differences), stdev(differences) / math.sqrt(num)
    half = float(stats.t.ppf(0.975, num - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, num - 1))
    return Difference(mean, mean - half, mean + half, p)


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p values for their number: of m ascending ones, max over j <= i of (m - j + 1) p_j, at most 1.

    Paper: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics
    6 (1979), 65-70.
    """
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = largest
    return corrected


def score_comparison(cells: Sequence[Cell], baseline: str, metric: str = "score") -> Sheet:
    """Mean over domains of one metric: mean and spread over seeds, and the difference to the baseline.

    Global models are compared with the baseline's global model, personalised ones with its personalised one.
    """
    name, digits = METRICS[metric]
    values = _by_arm(cells, metric)
    found = {
        (arm, model): paired([of_seed[s] for s in shared], [values[baseline, model][s] for s in shared])
        for (arm, model), of_seed in values.items()
        if arm != baseline and (baseline, model) in values
        for shared in [sorted(of_seed.keys() & values[baseline, model].keys())]
    }
    tested = {key: difference for key, difference in found.items() if difference is not None}
    corrected = dict(zip(tested, holm([d.p for d in tested.values()]), strict=True))
    records: list[Event] = []
    for (arm, model), of_seed in values.items():
        numbers = list(of_seed.values())
        record: Event = {"arm": arm, "model": model, "num_seeds": len(numbers), "mean": fmean(numbers)}
        record["sd"] = stdev(numbers) if len(numbers) > 1 else None
        difference = tested.get((arm, model))
        record |= {
            "difference": difference.mean if difference else None,
            "low": difference.low if difference else None,
            "high": difference.high if difference else None,
            "p_holm": corrected.get((arm, model)),
        }
        records.append(record)
    rows = [
        (
            record["arm"],
            record["model"],
            str(record["num_seeds"]),
            number(record["mean"], digits),
            number(record["sd"], digits),
            f"{record['difference']:+.{digits}f} [{record['low']:+.{digits}f}, {record['high']:+.{digits}f}]"
            if record["difference"] is not None
            else NONE,
            number(record["p_holm"], 3),
        )
        for record in records
    ]
    return Sheet(
        f"{name.capitalize()}, mean over domains: over seeds, and against {baseline}",
        "llrrrrr",
        ("arm", "model", "seeds", "mean", "sd", f"minus {baseline} [95 %]", "p (Holm)"),
        tuple(rows),
        tuple(records),
        note="Paired t over seeds; all cells share the test examples, so nothing here speaks of other ones.",
    )


def domain_comparison(cells: Sequence[Cell]) -> Sheet:
    """All metrics by domain: mean over seeds, with the standard deviation where there are several seeds."""
    records: list[Event] = []
    for arm, model in _by_arm(cells, "words"):
        tables = [_model_of(cell, arm, model) for cell in cells]
        having = [table for table in tables if table]
        for domain in dict.fromkeys(name for table in having for name in table):
            record: Event = {"arm": arm, "model": model, "domain": domain}
            for metric in METRICS:
                numbers = [table[domain][metric] for table in having if metric in table.get(domain, {})]
                record[metric] = fmean(numbers) if numbers else None
                record[f"{metric}_sd"] = stdev(numbers) if len(numbers) > 1 else None
            records.append(record)

    def shown(record: Event, metric: str, digits: int) -> str:
        spread = record[f"{metric}_sd"]
        return number(record[metric], digits) + (f" ({spread:.{digits}f})" if spread is not None else "")

    return Sheet(
        "By domain: mean over seeds (standard deviation)",
        "lll" + "r" * len(METRICS),
        ("arm", "model", "domain", *(name for name, _ in METRICS.values())),
        tuple(
            (r["arm"], r["model"], r["domain"], *(shown(r, m, digits) for m, (_, digits) in METRICS.items()))
            for r in records
        ),
        tuple(records),
    )


def cost_comparison(cells: Sequence[Cell]) -> Sheet:
    """What a cell of each arm costs, all clients together, as a mean over seeds."""
    names = ("num_steps", "num_tokens", "num_bytes_up", "num_bytes_down", "prepare", "train", "evaluate")
    records: list[Event] = []
    for arm in dict.fromkeys(cell.arm for cell in cells):
        totals = [_costs(cell) for cell in cells if cell.arm == arm]
        records.append({"arm": arm} | {name: fmean(total[name] for total in totals) for name in names})
    rows = [
        (
            record["arm"],
            *(f"{record[name]:,.0f}" for name in names[:2]),
            *(data_size(record[name]) for name in names[2:4]),
            *(number(record[name], 0) for name in names[4:]),
        )
        for record in records
    ]
    return Sheet(
        "Costs of a cell, all clients together, mean over seeds",
        "lrrrrrrr",
        ("arm", "steps", "response tokens", "up", "down", "prepare s", "train s", "evaluate s"),
        tuple(rows),
        tuple(records),
        note="Cells share rewritings: the first that needs them pays, and prepare s of the others is small.",
    )


def _costs(cell: Cell) -> dict[str, float]:
    records = cost_records(cell.events)
    total: dict[str, float] = {
        work: sum(r["seconds"] for r in records if r["work"] == work)
        for work in ("prepare", "train", "evaluate")
    }
    for name in ("num_tokens", "num_bytes_up", "num_bytes_down"):
        total[name] = sum(record.get(name, 0) for record in records)
    total["num_steps"] = sum(v for r in records for k, v in r.items() if k.startswith("num_steps_"))
    return total


def _model_of(cell: Cell, arm: str, model: str) -> Mapping[str, dict[str, float]]:
    """Numbers of one model in a cell; {} where the cell is of another arm or has no such model."""
    if arm == "base":
        return cell.base.get("global", {})
    return cell.final.get(model, {}) if cell.arm == arm else {}


def _by_arm(cells: Sequence[Cell], metric: str) -> dict[tuple[str, str], dict[int, float]]:
    """(arm, model) -> seed -> mean over domains. The base model is an arm of its own, once a seed."""
    arms = [("base", NONE)]
    arms += [(cell.arm, model) for cell in cells for model in ("global", "personalised")]
    values: dict[tuple[str, str], dict[int, float]] = {}
    for arm, model in dict.fromkeys(arms):
        for cell in cells:
            mean = _model_of(cell, arm, model).get("mean", {})
            if metric in mean:
                values.setdefault((arm, model), {})[cell.seed] = mean[metric]
    return values
