"""Tables that compare the arms of a grid: means over seeds, paired differences to a baseline, costs.

In: the results of every cell. An arm is one choice of settings, a cell one arm with one seed. Tests over
seeds cover what seeds draw (order of the data, initial adapters, draw of clients); tests over seeds and
examples cover the draw of the test examples too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fedsdr.experiments.grid_runs import VERDICTS, Cell, over_examples
from fedsdr.experiments.refutation_report import refutation
from fedsdr.report.events import cost_records, data_size
from fedsdr.report.sheets import NONE, Sheet, number
from fedsdr.stats import Difference, holm, paired
from fedsdr.storage import Event

METRICS = {
    "score": ("exact score", 3),
    "loss": ("loss, true responses", 3),
    "loss_distilled": ("loss, rewritings", 3),
    "unsupported_rate": ("unsupported", 3),
    "words": ("words", 1),
    "choice_score": ("choice by likelihood", 3),
}
COSTS = ("num_steps", "num_tokens", "num_bytes_up", "num_bytes_down", "prepare", "train", "evaluate")
Arm = tuple[str, str]
"""Name of an arm, and which of its models; the base model is an arm of its own."""


@dataclass(frozen=True)
class Group:
    """Arms that are compared with each other."""

    arms: list[str]
    baseline: str
    personal_baseline: str

    def baseline_of(self, model: str) -> str:
        """The arm that an arm's global or personalised model is compared with."""
        return self.personal_baseline if model == "personalised" else self.baseline


@dataclass(frozen=True)
class Trial:
    """An arm with one learning rate, scored on validation examples."""

    arm: str
    rate: float
    loss: float | None
    """None where training diverged."""
    is_chosen: bool


@dataclass(frozen=True)
class Comparison:
    """All tables of a grid, and the records that are drawn."""

    sheets: dict[str, Sheet]
    drawn: dict[str, Sequence[Event]]
    """What is equal between the arms -> records of score and losses."""
    verdicts: Sequence[Event] = ()
    """What the cells say of the method: {"claim", "verdict", "text"} each."""


def compare_cells(cells: Sequence[Cell], groups: Mapping[str, Group], trials: Sequence[Trial]) -> Comparison:
    """Make all tables.

    Args:
        cells: All that were run.
        groups: What is equal, in words ("" where nothing is said) -> the arms compared on it.
        trials: How learning rates were chosen; empty where they were not.
    """
    sheets: dict[str, Sheet] = {}
    drawn: dict[str, Sequence[Event]] = {}
    for place, (equal, group) in enumerate(groups.items(), start=1):
        own = [cell for cell in cells if cell.arm in group.arms]
        prefix = f"{place}-" if len(groups) > 1 else ""
        some = {metric: score_comparison(own, group, metric, equal) for metric in METRICS}
        sheets |= {f"{prefix}{metric}": sheet for metric, sheet in some.items() if sheet.rows}
        sheets[f"{prefix}costs"] = cost_comparison(own, equal)
        drawn[equal] = [
            {"metric": metric, **record} for metric, sheet in some.items() for record in sheet.records
        ]
    sheets["domains"] = domain_comparison(cells)
    if trials:
        sheets["rates"] = rate_choice(trials)
    tested, verdicts = refutation(cells)
    if tested.rows:
        sheets["refutation"] = tested
    return Comparison(sheets, drawn, verdicts)


def score_comparison(cells: Sequence[Cell], group: Group, metric: str = "score", equal: str = "") -> Sheet:
    """Mean over domains of one metric: mean and spread over seeds, and the difference to the baseline.

    Global models are compared with the baseline's global model, personalised ones with its personalised one.
    Where the metric is a mean of verdicts on answers, a second test covers the draw of examples too.
    """
    name, digits = METRICS[metric]
    values = _by_arm(cells, metric)
    over_seeds: dict[Arm, Difference] = {}
    over_both: dict[Arm, Difference] = {}
    for (arm, model), of_seed in values.items():
        baseline = group.baseline_of(model)
        if arm == baseline or (baseline, model) not in values:
            continue
        other = values[baseline, model]
        shared = sorted(of_seed.keys() & other.keys())
        if found := paired([of_seed[seed] for seed in shared], [other[seed] for seed in shared]):
            over_seeds[arm, model] = found
        if metric in VERDICTS and (both := over_examples(cells, arm, baseline, model, VERDICTS[metric])):
            over_both[arm, model] = both
    tests = {"": over_seeds} | ({"_examples": over_both} if metric in VERDICTS else {})
    corrected = {
        suffix: dict(zip(differences, holm([d.p for d in differences.values()]), strict=True))
        for suffix, differences in tests.items()
    }
    records: list[Event] = []
    for (arm, model), of_seed in values.items():
        numbers = list(of_seed.values())
        record: Event = {"arm": arm, "model": model, "num_seeds": len(numbers), "mean": fmean(numbers)}
        record["sd"] = stdev(numbers) if len(numbers) > 1 else None
        baseline = group.baseline_of(model)
        shared = sorted(of_seed.keys() & values.get((baseline, model), {}).keys())
        is_compared = arm != baseline and bool(shared)
        gains = [of_seed[seed] - values[baseline, model][seed] for seed in shared]
        record["difference"] = fmean(gains) if is_compared else None
        for suffix, differences in tests.items():
            d = differences.get((arm, model))
            record |= {f"low{suffix}": d.low if d else None, f"high{suffix}": d.high if d else None}
            record[f"p_holm{suffix}"] = corrected[suffix].get((arm, model))
        records.append(record)
    is_one = group.baseline == group.personal_baseline
    against = group.baseline if is_one else "baseline"
    heads = ["arm", "model", "seeds", "mean", "sd", f"minus {against}"]
    for suffix in tests:
        over = "seeds, examples" if suffix else "seeds"
        heads += [f"95 % ({over})", "p (Holm)"]
    rows = [
        (
            record["arm"],
            record["model"],
            str(record["num_seeds"]),
            number(record["mean"], digits),
            number(record["sd"], digits),
            NONE if record["difference"] is None else f"{record['difference']:+.{digits}f}",
            *(cell for suffix in tests for cell in _test_cells(record, suffix, digits)),
        )
        for record in records
    ]
    baselines = f"; against {group.baseline}, personalised against {group.personal_baseline}"
    return Sheet(
        f"{name.capitalize()}, mean over domains"
        + (f"; {equal}" if equal else "")
        + baselines * (not is_one),
        "ll" + "r" * (len(heads) - 2),
        tuple(heads),
        tuple(rows),
        tuple(records),
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


def cost_comparison(cells: Sequence[Cell], equal: str = "") -> Sheet:
    """What a cell of each arm costs, all clients together, as a mean over seeds."""
    names = (*COSTS, "seconds", "peak_memory")
    records: list[Event] = []
    for arm in dict.fromkeys(cell.arm for cell in cells):
        totals = [_costs(cell) for cell in cells if cell.arm == arm]
        record: Event = {"arm": arm}
        for name in names:
            known = [total[name] for total in totals if name in total]
            record[name] = fmean(known) if known else None
        records.append(record)
    rows = [
        (
            record["arm"],
            *(f"{record[name]:,.0f}" for name in names[:2]),
            *(data_size(record[name]) for name in names[2:4]),
            *(number(record[name], 0) for name in names[4:8]),
            NONE if record["peak_memory"] is None else data_size(record["peak_memory"]),
        )
        for record in records
    ]
    return Sheet(
        "Costs of a cell, all clients together, mean over seeds" + (f"; {equal}" if equal else ""),
        "l" + "r" * len(names),
        (
            "arm",
            "steps",
            "response tokens",
            "up",
            "down",
            "prepare s",
            "train s",
            "evaluate s",
            "all s",
            "peak",
        ),
        tuple(rows),
        tuple(records),
        note="Cells share rewritings, which do not depend on the seed: the first that needs them pays, and"
        " those beside it wait for it. All s: of the process that ended the cell. Peak: its memory on the"
        " host. Steps before round 1, and passes that learn weights of aggregation, are beside the budget.",
    )


def rate_choice(trials: Sequence[Trial]) -> Sheet:
    """Validation loss of every arm with every learning rate."""
    rates = list(dict.fromkeys(trial.rate for trial in trials))
    by_arm: dict[str, dict[float, Trial]] = {}
    for trial in trials:
        by_arm.setdefault(trial.arm, {})[trial.rate] = trial
    rows = []
    for arm, of_rate in by_arm.items():
        chosen = next((rate for rate, trial in of_rate.items() if trial.is_chosen), None)
        at_end = len(rates) > 1 and chosen in (min(rates), max(rates))
        losses = (_loss_cell(of_rate.get(rate)) for rate in rates)
        shown = NONE if chosen is None else f"{chosen:g}"
        rows.append((arm, *losses, shown, "at the end of the list" if at_end else ""))
    return Sheet(
        "Learning rates: loss on validation examples of what each arm learns last",
        "l" + "r" * (len(rates) + 1) + "l",
        ("arm", *(f"{rate:g}" for rate in rates), "chosen", ""),
        tuple(rows),
        tuple(vars(trial) for trial in trials),
        note="With the first seed. Losses of arms that learn true responses and of arms that learn rewritings"
        " are not of the same texts. A choice at the end of the list might be beaten beyond it.",
    )


def _loss_cell(trial: Trial | None) -> str:
    if trial is None:
        return NONE
    return "diverged" if trial.loss is None else number(trial.loss, 3)


def _test_cells(record: Event, suffix: str, digits: int) -> tuple[str, str]:
    low, high = record[f"low{suffix}"], record[f"high{suffix}"]
    interval = NONE if low is None else f"[{low:+.{digits}f}, {high:+.{digits}f}]"
    p = record[f"p_holm{suffix}"]
    return interval, "<0.001" if p is not None and p < 0.001 else number(p, 3)


def _costs(cell: Cell) -> dict[str, float]:
    records = cost_records(cell.events)
    total: dict[str, float] = {
        work: sum(r["seconds"] for r in records if r["work"] == work)
        for work in ("prepare", "train", "evaluate")
    }
    for name in ("num_tokens", "num_bytes_up", "num_bytes_down"):
        total[name] = sum(record.get(name, 0) for record in records)
    total["num_steps"] = sum(v for r in records for k, v in r.items() if k.startswith("num_steps_"))
    end = next((event for event in cell.events if event["event"] == "end"), {})
    # A cell in several processes tells neither.
    return total | {name: end[name] for name in ("seconds", "peak_memory") if name in end}


def _model_of(cell: Cell, arm: str, model: str) -> Mapping[str, dict[str, float]]:
    """Numbers of one model in a cell; {} where the cell is of another arm or has no such model."""
    if arm == "base":
        return cell.base.get("global", {})
    return cell.final.get(model, {}) if cell.arm == arm else {}


def _by_arm(cells: Sequence[Cell], metric: str) -> dict[Arm, dict[int, float]]:
    """(arm, model) -> seed -> mean over domains. The base model is an arm, if it is one for all."""
    bases = {cell.base.get("global", {}).get("mean", {}).get(metric) for cell in cells}
    arms = [("base", NONE)] if len(bases) == 1 else []
    arms += [(cell.arm, model) for cell in cells for model in ("global", "personalised")]
    values: dict[Arm, dict[int, float]] = {}
    for arm, model in dict.fromkeys(arms):
        for cell in cells:
            mean = _model_of(cell, arm, model).get("mean", {})
            if metric in mean:
                values.setdefault((arm, model), {})[cell.seed] = mean[metric]
    return values
