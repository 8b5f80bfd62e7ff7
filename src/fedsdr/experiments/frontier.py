"""Arms of a grid against the control at equal cost (`analysis.frontier`), from the scores of their runs.

Input: the records of `frontier_scores` of each run, by example. The control for global models is plain
federated LoRA, for personalised models local training.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from fedsdr.analysis.frontier import (
    MARGIN,
    Array,
    CostComparison,
    Curve,
    SeedPair,
    against_control,
    domain_weights,
    verdicts,
)
from fedsdr.errors import UserError
from fedsdr.report.sheets import NONE, Sheet, number, p_value, signed, signed_interval
from fedsdr.stats import seed_interval
from fedsdr.storage import Event

SAME_LOSS = 0.05
"""Largest mean difference of the base's losses on the same examples, in nats; batches differ."""
CONTROLS = {"global": "fedit", "personalised": "local-only"}
"""Model -> method of its control."""


@dataclass(frozen=True)
class ScoredRun:
    """One run of an arm, with the records of `frontier_scores`."""

    arm: str
    seed: int
    models: Sequence[Event]

    @property
    def base(self) -> Event:
        """The record of the base model."""
        return next(record for record in self.models if record["model"] == "base")

    def points(self, model: str) -> dict[tuple[int, float], Event]:
        """Round and scale -> record, ascending."""
        found = {(r["round"], r["scale"]): r for r in self.models if r["model"] == model}
        return dict(sorted(found.items()))


@dataclass(frozen=True)
class Point:
    """A model's cost per prompt, and its gain per example with each example's domain."""

    cost: Array
    test: Array
    domains: list[str]
    validation: Array
    validation_domains: list[str]


def cost_and_gain(models: Sequence[Event]) -> list[Event]:
    """Cost C and gain G of each of a run's models, over all domains, with the gains in each domain."""
    run, found = ScoredRun("", 0, models), []
    for record in models[1:]:
        point = point_of(run, record)
        by_domain = {
            f"gain_{name}": float(np.mean(point.test[np.asarray(point.domains) == name]))
            for name in dict.fromkeys(point.domains)
        }
        gain = float(point.test @ domain_weights(point.domains))
        place = {key: record[key] for key in ("model", "round", "scale")}
        found.append({**place, "cost": float(point.cost.mean()), "gain": gain, **by_domain})
    return found


def frontier(
    runs: Sequence[ScoredRun], controls: Mapping[str, str], one_word: Collection[str]
) -> list[Event]:
    """Compare every arm, round and scale with the control at its cost.

    Args:
        runs: Runs of all arms and seeds.
        controls: Model ("global", "personalised") -> its control arm.
        one_word: Domains with one-word responses. If there are other domains too, gains are also given
            separately for these and for the others.

    Returns:
        A record for each arm, model, round, scale and selection of domains (`of`); Holm's correction is over
        the arms with the same model, round, scale and selection.
    """
    domains = list(runs[0].models[0]["test"]) if runs else []
    choices = {"all": domains}
    if some := [name for name in domains if name in one_word]:
        choices |= {"free text": [name for name in domains if name not in some], "one word": some}
    found = []
    for model, control in controls.items():
        curves = {run.seed: run for run in runs if run.arm == control}
        arms = dict.fromkeys(run.arm for run in runs if run.arm != control)
        places = sorted({place for run in runs if run.arm != control for place in run.points(model)})
        for of, chosen in ((of, chosen) for of, chosen in choices.items() if chosen):
            for place in places:
                pairs = {
                    arm: [
                        _pair(curves[run.seed], run, model, place, chosen, chosen)
                        for run in runs
                        if run.arm == arm and run.seed in curves and place in run.points(model)
                    ]
                    for arm in arms
                }
                compared = {arm: against_control(some) for arm, some in pairs.items() if some}
                found += [
                    {"arm": arm, "model": model, "round": place[0], "scale": place[1], "of": of,
                     **_record(one), "num_examples": len(pairs[arm][0].test), "p_holm": p, "verdict": word}
                    for (arm, one), (word, p) in zip(
                        compared.items(), verdicts([*compared.values()]), strict=True
                    )
                ]  # fmt: skip
    return found


def by_domain(runs: Sequence[ScoredRun], controls: Mapping[str, str]) -> list[Event]:
    """Compare every arm with the control at its cost in each domain, at lambda = 1 after the last round.

    The control is one model for all domains, selected over all of them.

    Returns:
        A record for each arm, model and domain.
    """
    found = []
    for model, control in controls.items():
        curves = {run.seed: run for run in runs if run.arm == control}
        for arm in dict.fromkeys(run.arm for run in runs if run.arm != control):
            own = [run for run in runs if run.arm == arm and run.seed in curves and run.points(model)]
            for domain in sorted(own[0].models[0]["test"]) if own else ():
                last = max(number_ for number_, _ in own[0].points(model))
                pairs = [_pair(curves[run.seed], run, model, (last, 1.0), [domain], ()) for run in own]
                found.append(
                    {"arm": arm, "model": model, "domain": domain, **_record(against_control(pairs))}
                )
    return found


def domain_sheet(records: Sequence[Event]) -> Sheet:
    """The table of `by_domain`: a row for each arm and model, with its worst domain."""
    domains = list(dict.fromkeys(r["domain"] for r in records))
    arms = list(dict.fromkeys((r["arm"], r["model"]) for r in records))
    rows = []
    for arm in arms:
        own = {r["domain"]: r for r in records if (r["arm"], r["model"]) == arm}
        known = [r for r in own.values() if r["difference"] is not None]
        worst = min(known, key=lambda r: r["difference"], default=None)
        rows.append(
            (*arm, seeds(next(iter(own.values()))), *(signed(own[name]["difference"]) for name in domains),
             *((worst["domain"], signed_interval(worst["low"], worst["high"])) if worst else (NONE, NONE)))
        )  # fmt: skip
    return Sheet(
        "Gain at equal cost by domain: D at lambda = 1 after the last round",
        "llr" + "r" * len(domains) + "lr",
        ("arm", "model", "seeds", *domains, "worst client", "its 95 %"),
        tuple(rows),
        tuple({key: value for key, value in r.items() if key != "by_seed"} for r in records),
        note="The control is one model for all domains: lambda and round are selected over all of them. The"
        " intervals are not corrected for the choice of the worst client.",
    )


def mean_points(runs: Sequence[ScoredRun]) -> list[Event]:
    """Mean cost and gain of each arm's models over seeds, with the gain's 95 % interval over seeds."""
    by_place: dict[tuple[str, str, int, float], list[Event]] = {}
    for run in runs:
        for r in cost_and_gain(run.models):
            by_place.setdefault((run.arm, r["model"], r["round"], r["scale"]), []).append(r)
    found = []
    for (arm, model, number_, scale), rows in by_place.items():
        gains = [row["gain"] for row in rows]
        sd = float(np.std(gains, ddof=1)) if len(gains) > 1 else None
        low, high = seed_interval(fmean(gains), sd, len(gains)) or (None, None)
        found.append(
            {"arm": arm, "model": model, "round": number_, "scale": scale, "num_seeds": len(rows),
             "cost": fmean(row["cost"] for row in rows), "gain": fmean(gains), "low": low, "high": high}
        )  # fmt: skip
    return found


def frontier_sheet(records: Sequence[Event]) -> Sheet:
    """The table of `frontier`."""
    return Sheet(
        "Gain at equal cost: arm minus the control scaled to at most the arm's cost",
        "llrrlrrrrrrrl",
        ("arm", "model", "round", "lambda", "domains", "seeds", "cost", "gain", "control's gain", "D",
         "95 % (seeds, examples)", "p (Holm)", "verdict"),
        tuple(
            (
                r["arm"], r["model"], str(r["round"]), f"{r['scale']:g}", r["of"], seeds(r),
                number(r["cost"], 3), number(r["gain"], 3), number(r["control"], 3), signed(r["difference"]),
                signed_interval(r["low"], r["high"]), p_value(r["p_holm"]), r["verdict"],
            )
            for r in records
        ),
        tuple({key: value for key, value in r.items() if key != "by_seed"} for r in records),
        note="Cost: mean KL(base || model) per token of the base's answers, in nats. Gain: loss on true"
        " responses, base minus model, mean over domains. The control: W0 + lambda R of plain federated LoRA"
        " (of local training for personalised models), lambda and round chosen on validation examples."
        f" No worse: the interval is above -{MARGIN:g} nats. Not comparable: in"
        " some seed, counted as beyond, the arm costs more than every point of the control; numbers are of"
        " the other seeds, or of all where none is left.",
    )  # fmt: skip


def seeds(record: Event) -> str:
    """Numbers of comparable seeds, and of seeds beyond the control's range."""
    return f"{record['num_seeds']}" + (f", {n} beyond" if (n := record["num_beyond"]) else "")


def _record(one: CostComparison) -> Event:
    d = one.by_seed
    return {
        "num_seeds": len(d),
        "num_beyond": one.num_beyond,
        "cost": one.cost,
        "gain": one.gain,
        "control": one.control,
        "difference": fmean(d) if d else None,
        "low": one.low,
        "high": one.high,
        "low_seeds": one.test and one.test.low,
        "high_seeds": one.test and one.test.high,
        "by_seed": list(d),
    }


def _pair(
    control: ScoredRun,
    run: ScoredRun,
    model: str,
    place: tuple[int, float],
    domains: Collection[str],
    validation: Collection[str],
) -> SeedPair:
    """Gains in these domains; the control's points are selected by gains in `validation`. Empty: all."""
    curves: dict[int, list[Point]] = {}
    for (number_, _), record in control.points(model).items():
        curves.setdefault(number_, []).append(point_of(control, record, domains, validation))
    point = point_of(run, run.points(model)[place], domains, validation)
    first = next(iter(curves.values()))[0] if curves else None
    if (
        first is None
        or (first.domains, len(first.cost)) != (point.domains, len(point.cost))
        or np.abs(_base_losses(control) - _base_losses(run)).mean() > SAME_LOSS
    ):
        raise UserError(
            f"{run.arm}, seed {run.seed}: the {model} model was scored on other examples than"
            f" {control.arm}'s; score both on the same examples"
        )
    stacked = [
        Curve(*(np.stack([getattr(one, part) for one in curve]) for part in ("cost", "validation", "test")))
        for curve in curves.values()
    ]
    return SeedPair(stacked, point.cost, point.test, point.domains, first.validation_domains)


def _base_losses(run: ScoredRun) -> Array:
    """The base's loss on each test example, by which those of two runs are recognised as the same."""
    return np.concatenate([run.base["test"][name] for name in sorted(run.base["test"])])


def point_of(
    run: ScoredRun, record: Event, domains: Collection[str] = (), validation: Collection[str] = ()
) -> Point:
    """A record of `frontier_scores` as gains over the base of the same run.

    Args:
        run: The run.
        record: Record of one of its models.
        domains: Domains of the test examples; empty: all.
        validation: Domains of the validation examples, which only a control has; empty: all.
    """
    parts: dict[str, tuple[Array, list[str]]] = {}
    for part, chosen in (("test", domains), ("validation", validation)):
        of_part = record.get(part, {})
        names = [name for name in sorted(of_part) if not chosen or name in chosen]
        gains = [np.subtract(run.base[part][name], of_part[name]) for name in names]
        parts[part] = np.concatenate([[], *gains]), [name for name in names for _ in of_part[name]]
    return Point(np.asarray(record["kl"]), *parts["test"], *parts["validation"])
