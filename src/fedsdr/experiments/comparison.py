"""Tables that compare the arms of a grid: means over seeds, paired differences to a baseline, costs.

Input: the results of all finished runs. An arm is one choice of settings; a run is one arm with one seed.
Tests over seeds cover what seeds determine (order of the data, initial adapters, sampling of clients). Tests
over seeds and examples also cover the draw of the test examples.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from fedsdr.experiments.grid_runs import BASE, VERDICTS, GridRun, compare_arms, correct, ends, means
from fedsdr.experiments.refutation import refutation
from fedsdr.metrics import all_fell_back
from fedsdr.report.events import cost_records, data_size, total_costs
from fedsdr.report.gains import BETTER, UNDECIDED, WORSE
from fedsdr.report.notices import Notice
from fedsdr.report.sheets import NONE, Sheet, grouped, number, p_value, signed, signed_interval
from fedsdr.stats import LEVEL
from fedsdr.storage import Event

COMPARED = {
    "score": ("exact score", 3),
    "balanced_accuracy": ("balanced accuracy", 3),
    "macro_f1": ("macro-F1", 3),
    "matthews": ("Matthews' correlation", 3),
    "exact_match": ("exact match", 3),
    "token_f1": ("token F1", 3),
    "rouge_l": ("ROUGE-L", 3),
    "loss": ("loss, true responses", 3),
    "loss_distilled": ("loss, rewritings", 3),
    "unsupported_rate": ("unsupported", 3),
    "words": ("words", 1),
    "choice_score": ("choice by likelihood", 3),
}
"""Metric -> its label, and decimals."""
BY_DOMAIN = {**COMPARED, "majority_share": ("majority label", 3)}
"""The majority share is a property of the data; no arm can change it."""
COSTS = {
    "num_steps": "steps",
    "num_tokens": "response tokens",
    "num_bytes_up": "up",
    "num_bytes_down": "down",
    "prepare": "prepare s",
    "train": "train s",
    "evaluate": "evaluate s",
    "seconds": "all s",
    "peak_memory": "peak",
}
LOWER_IS_BETTER = ("loss", "loss_distilled", "unsupported_rate")
KEY = (
    f"Signs are by p of the last test in a table, corrected by Holm: {BETTER} better or {WORSE} worse below"
    f" {LEVEL}, {UNDECIDED} undecided otherwise, also next to an interval without 0."
)
BYTES = ("num_bytes_up", "num_bytes_down", "peak_memory")


@dataclass(frozen=True)
class Group:
    """Arms compared with each other."""

    arms: list[str]
    baseline: str
    personal_baseline: str

    def baseline_of(self, model: str) -> str:
        """The baseline arm for global or personalised models."""
        return self.personal_baseline if model == "personalised" else self.baseline


@dataclass(frozen=True)
class Trial:
    """An arm with one learning rate, scored on validation examples."""

    arm: str
    rate: float
    loss: float | None
    """None if training diverged."""
    is_chosen: bool


@dataclass(frozen=True)
class Comparison:
    """All tables of a grid, and the plotted records."""

    sheets: dict[str, Sheet]
    drawn: dict[str, Sequence[Event]]
    """What is held equal between the arms -> records of score and losses."""
    verdicts: Sequence[Event] = ()
    """Claims about the method with their verdicts: {"claim", "verdict", "text"} each."""
    notices: Sequence[Notice] = ()
    """Warnings of the grid and its runs."""


def compare_runs(runs: Sequence[GridRun], groups: Mapping[str, Group], trials: Sequence[Trial]) -> Comparison:
    """Create all tables.

    Args:
        runs: All finished runs.
        groups: Description of what is held equal ("" for none) -> the arms compared on it.
        trials: Results of choosing learning rates; empty if they were not chosen.
    """
    sheets: dict[str, Sheet] = {}
    drawn: dict[str, Sequence[Event]] = {}
    notices: list[Notice] = []
    for place, (equal, group) in enumerate(groups.items(), start=1):
        own = [run for run in runs if run.arm in group.arms]
        prefix = f"{place}-" if len(groups) > 1 else ""
        found = {metric: score_comparison(own, group, metric, equal) for metric in COMPARED}
        if shown := [metric for metric, sheet in found.items() if sheet.rows]:
            first = found[shown[0]]
            found[shown[0]] = replace(first, note=f"{KEY} {first.note}".strip())
        sheets |= {f"{prefix}{metric}": sheet for metric, sheet in found.items()}
        sheets[f"{prefix}costs"] = costs = cost_comparison(own, equal)
        notices += [] if equal else _unlike_steps(costs.records)
        drawn[equal] = [
            {"metric": metric, **record} for metric, sheet in found.items() for record in sheet.records
        ]
    tested, verdicts = refutation(runs)
    sheets |= {"domains": domain_comparison(runs), "rates": rate_choice(trials), "refutation": tested}
    return Comparison({name: sheet for name, sheet in sheets.items() if sheet.rows}, drawn, verdicts, notices)


def _unlike_steps(costs: Sequence[Event]) -> list[Notice]:
    """A warning if arms train for numbers of steps that differ by more than 5 %."""
    steps = {record["arm"]: record["num_steps"] for record in costs if record["num_steps"]}
    if not steps or max(steps.values()) <= 1.05 * min(steps.values()):
        return []
    listed = ", ".join(f"{arm} {num:,.0f}" for arm, num in steps.items())
    text = (
        f"the arms train for unlike numbers of steps ({listed}); if that is not what the grid is about, set"
        ' budgets = ["per_round"] in it'
    )
    return [Notice(text, is_warning=True)]


def score_comparison(runs: Sequence[GridRun], group: Group, metric: str = "score", equal: str = "") -> Sheet:
    """Mean over domains of one metric: mean and spread over seeds, and differences to base and baseline.

    Global models are compared with the baseline's global model, personalised models with its personalised
    one. If the metric is a mean of verdicts on answers, a second test also covers the draw of examples.
    """
    name, digits = COMPARED[metric]
    suffixes = ("", "_examples") if metric in VERDICTS else ("",)
    records: list[Event] = []
    for (arm, model), of_seed in means(runs, metric).items():
        against = group.baseline_of(model)
        gain = compare_arms(runs, (arm, model), (against, model), metric)
        record: Event = {"arm": arm, "model": model, "num_seeds": len(of_seed), **_spread(of_seed.values())}
        record |= {"against": against, "difference": fmean(gain.by_seed) if gain else None}
        record |= {"num_common": len(gain.by_seed) if gain else None}
        tests = (gain.over_seeds, gain.over_examples) if gain else (None, None)
        for suffix, test in zip(suffixes, tests, strict=False):
            record |= {**ends(test, suffix), f"p_holm{suffix}": test and test.p}
        raised = compare_arms(runs, (arm, model), BASE, metric)
        last = None
        if raised:
            last = raised.over_examples if metric in VERDICTS else raised.over_seeds
        record |= {"difference_base": fmean(raised.by_seed) if raised else None}
        record |= {**ends(last, "_base"), "p_holm_base": last and last.p}
        records.append(record)
    for suffix in suffixes:
        correct(records, f"p_holm{suffix}")
    correct(records, "p_holm_base", "difference_base")
    is_one = group.baseline == group.personal_baseline
    heads = [
        "arm",
        "model",
        "seeds",
        "mean",
        "sd",
        "minus base",
        f"minus {group.baseline if is_one else 'baseline'}",
    ]
    for over in ("seeds", "seeds, examples")[: len(suffixes)]:
        heads += [f"95 % ({over})", "p (Holm)"]
    baselines = f"; against {group.baseline}, personalised against {group.personal_baseline}"
    return Sheet(
        f"{name.capitalize()}, mean over domains" + _given(equal) + baselines * (not is_one),
        "ll" + "r" * (len(heads) - 2),
        tuple(heads),
        tuple(
            (
                record["arm"],
                record["model"],
                _seeds(record),
                number(record["mean"], digits),
                number(record["sd"], digits),
                _signed(record, metric, "_base", digits),
                _signed(record, metric, suffixes[-1], digits),
                *(text for suffix in suffixes for text in _test(record, suffix, digits)),
            )
            for record in records
        ),
        tuple(records),
        note="Arms whose test rewritings differ are not compared. " * (metric == "loss_distilled")
        + "Seeds in common: those that the baseline has too. Difference, interval and p use only these."
        * any(_is_partial(record) for record in records),
    )


def _is_partial(record: Event) -> bool:
    return record["num_common"] not in (None, record["num_seeds"])


def _seeds(record: Event) -> str:
    common = f" ({record['num_common']} in common)" if _is_partial(record) else ""
    return f"{record['num_seeds']}{common}"


def domain_comparison(runs: Sequence[GridRun]) -> Sheet:
    """All metrics of all arms by domain: mean over seeds, with the standard deviation of several seeds."""
    records: list[Event] = []
    for arm in means(runs, "words"):
        tables = [run.scores(arm) for run in runs]
        for domain in dict.fromkeys(name for table in tables for name in table):
            record: Event = {"arm": arm[0], "model": arm[1], "domain": domain}
            rows = [table.get(domain, {}) for table in tables]
            for metric in BY_DOMAIN:
                found = _spread([row[metric] for row in rows if metric in row])
                record |= {metric: found["mean"], f"{metric}_sd": found["sd"]}
            records.append(record)

    columns = {
        metric: column for metric, column in BY_DOMAIN.items() if any(r[metric] is not None for r in records)
    }
    without = sorted({domain for run in runs for domain in all_fell_back(run.base, run.final)})

    def shown(record: Event, metric: str, digits: int) -> str:
        spread = record[f"{metric}_sd"]
        return number(record[metric], digits) + (f" ({spread:.{digits}f})" if spread is not None else "")

    return Sheet(
        "By domain: mean over seeds (standard deviation)",
        "lll" + "r" * len(columns),
        ("arm", "model", "domain", *(name for name, _ in columns.values())),
        tuple(
            (r["arm"], r["model"], r["domain"], *(shown(r, m, digits) for m, (_, digits) in columns.items()))
            for r in records
        ),
        tuple(records),
        note=f"No loss on rewritings, since all fell back: {', '.join(without)}; so no mean of them either."
        if without
        else "",
    )


def cost_comparison(runs: Sequence[GridRun], equal: str = "") -> Sheet:
    """Cost of a run of each arm, summed over clients, mean over seeds."""
    totals = grouped((run.arm, _costs(run)) for run in runs)
    records: list[Event] = []
    for arm, found in totals.items():
        known = {name: [total[name] for total in found if name in total] for name in COSTS}
        records.append({"arm": arm} | {name: _spread(values)["mean"] for name, values in known.items()})
    return Sheet(
        "Costs of a run, all clients together, mean over seeds" + _given(equal),
        "l" + "r" * len(COSTS),
        ("arm", *COSTS.values()),
        tuple((r["arm"], *(_cost(name, r[name]) for name in COSTS)) for r in records),
        tuple(records),
        note="Runs share rewritings, which do not depend on the seed. The first run that needs them pays, and"
        " concurrent runs wait for it. All s: seconds of the process that finished the run. Peak: its"
        " memory on the host. The step budget does not include steps before round 1 and passes that"
        " train aggregation weights. Work of clients whose reply was dropped is not counted.",
    )


def rate_choice(trials: Sequence[Trial]) -> Sheet:
    """Validation loss of every arm with every learning rate."""
    rates = list(dict.fromkeys(trial.rate for trial in trials))
    losses = {(trial.arm, trial.rate): _loss(trial) for trial in trials}
    chosen = {trial.arm: trial.rate for trial in trials if trial.is_chosen}
    at_end = {min(rates), max(rates)} if len(rates) > 1 else set()
    return Sheet(
        "Learning rates: loss on validation examples of what each arm learns last",
        "l" + "r" * (len(rates) + 1) + "l",
        ("arm", *(f"{rate:g}" for rate in rates), "chosen", ""),
        tuple(
            (
                arm,
                *(losses.get((arm, rate), NONE) for rate in rates),
                f"{chosen[arm]:g}" if arm in chosen else NONE,
                "at the end of the list" if chosen.get(arm) in at_end else "",
            )
            for arm in dict.fromkeys(trial.arm for trial in trials)
        ),
        tuple(vars(trial) for trial in trials),
        note="With the first seed. Losses of arms that learn true responses and of arms that learn"
        " rewritings are on different texts. A choice at the end of the list may not be the best rate.",
    )


def _loss(trial: Trial) -> str:
    return "diverged" if trial.loss is None else number(trial.loss, 3)


def _cost(name: str, value: float | None) -> str:
    return data_size(value) if name in BYTES and value is not None else number(value, 0)


def _given(equal: str) -> str:
    return f"; {equal}" if equal else ""


def sign(record: Event, metric: str, suffix: str = "") -> str:
    """Whether a difference is better, worse or undecided, after Holm's correction; "" if untested.

    Args:
        record: From `score_comparison`.
        metric: Determines which sign is better; for word counts neither is.
        suffix: Suffix of the test's keys: "_base" for the base model, otherwise the baseline.
    """
    p, difference = (
        record.get(f"p_holm{suffix}"),
        record["difference_base" if suffix == "_base" else "difference"],
    )
    if p is None or metric == "words":
        return ""
    if p >= LEVEL:
        return UNDECIDED
    return BETTER if (difference < 0) == (metric in LOWER_IS_BETTER) else WORSE


def _signed(record: Event, metric: str, suffix: str, digits: int) -> str:
    """A difference, preceded by its sign."""
    value = record["difference_base" if suffix == "_base" else "difference"]
    return f"{sign(record, metric, suffix)} {signed(value, digits)}".strip()


def _test(record: Event, suffix: str, digits: int) -> tuple[str, str]:
    interval = signed_interval(record[f"low{suffix}"], record[f"high{suffix}"], digits)
    return interval, p_value(record[f"p_holm{suffix}"])


def _spread(values: Collection[float]) -> dict[str, float | None]:
    """Mean and standard deviation; None with too few values."""
    return {"mean": fmean(values) if values else None, "sd": stdev(values) if len(values) > 1 else None}


def _costs(run: GridRun) -> Mapping[str, float]:
    total = total_costs(cost_records(run.events))
    steps = sum(value for name, value in total.items() if name.startswith("num_steps_"))
    end = next((event for event in run.events if event["event"] == "end"), {})
    # A run in several processes has neither.
    return {**total, "num_steps": steps} | {
        name: end[name] for name in ("seconds", "peak_memory") if name in end
    }
