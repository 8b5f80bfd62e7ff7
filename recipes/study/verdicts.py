"""Verdicts of the study from its records: the last section of docs/results/study.md, and its drawing.

    python recipes/study/verdicts.py docs/results/study docs/results/study.md README.md

The folder holds the cells' records, ARM-seed-N.json, and in its folder teacher those with a strong teacher;
it gets frontier.svg. In the document everything after the heading "Verdicts" is rewritten, and in README
the paragraph that begins with `BEGINNING`.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from textwrap import fill

from tables import (
    PLANNED,
    Model,
    Values,
    arm_sheet,
    difference,
    kept,
    last_points,
    power_sheet,
    retention_sheet,
)

from fedsdr.analysis.frontier import LEVEL
from fedsdr.experiments.frontier import (
    CONTROLS,
    ScoredRun,
    by_domain,
    domain_sheet,
    frontier,
    frontier_sheet,
    mean_points,
)
from fedsdr.report.frontier import frontier_svg
from fedsdr.report.sheets import NONE, Sheet, number, p_value, render_text, signed, signed_interval
from fedsdr.stats import holm
from fedsdr.storage import Event, read_json, write_file

PRIMARY = ("fedit", "fedsd", "fedsdr", "dual-raw", "centralised", "local-only")
ONE_WORD = ("finance",)
MENDED = "-labels"
"""Ends the names of arms on the pool whose labels were checked with their choices (docs/results/study.md)."""
WIDTH = 118
HEADING = "## Verdicts\n"
NOT_REGISTERED = (
    "As above, with the arms on the mended pool in the place of fedsd and fedsdr. Not registered: they were"
    " added after the others were seen."
)
BEGINNING = "A method that changes the model less may only be gentler."


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
    Claim(
        "8a. FedSD keeps more accuracy on retention tasks than plain federated LoRA", FEDSD, FEDIT, "accuracy"
    ),
    Claim("8b. FedSDR's global model does", FEDSDR, FEDIT, "accuracy"),
)
FAMILIES = (("4a.", "4b."), ("8a.", "8b."))
"""Claims, other than those at equal cost, that are one family for Holm's correction."""


def main(folder: Path, document: Path, readme: Path) -> None:
    """Read the records and write section, drawing and the paragraph of README."""
    records = _read(folder)
    runs = _runs(records)
    swapped = mended(records)
    primary = [run for run in runs if run.arm in PRIMARY]
    shown = [*primary, *(run for run in runs if run.arm.endswith(MENDED))]
    write_file(folder / "frontier.svg", frontier_svg(mean_points(shown), CONTROLS))
    other = [run for run in runs if run.arm not in PRIMARY or run.arm in CONTROLS.values()]
    compared = frontier(primary, CONTROLS, ONE_WORD)
    explored = explore(other) if len(runs) > len(primary) else []
    explored = [r for r in explored if r["arm"] not in PRIMARY]
    claims = decide(runs, records, compared)
    again = [run for run in _runs(swapped) if run.arm in PRIMARY]
    others = decide(again, swapped, frontier(again, CONTROLS, ONE_WORD)) if swapped else []
    sheets = [
        claim_sheet(claims),
        replace(claim_sheet(others), caption="The claims, on the mended pool", note=NOT_REGISTERED),
        power_sheet(claims),
        frontier_sheet([*compared, *explored]),
        domain_sheet(by_domain(runs, CONTROLS)),
        retention_sheet(records),
        arm_sheet(runs, records),
    ]
    if taught := _runs(_read(folder / "teacher")):
        both = frontier_sheet(explore(taught)), domain_sheet(by_domain(taught, CONTROLS))
        sheets += [replace(sheet, caption=f"A strong teacher. {sheet.caption}") for sheet in both]
    before = document.read_text(encoding="utf-8").partition(HEADING)[0]
    made = "Made by `python recipes/study/verdicts.py docs/results/study docs/results/study.md README.md`."
    said = fill(f"{made} {_count(runs)}", WIDTH)
    parts = [(before + HEADING).strip(), said, "![Gain over cost](study/frontier.svg)"]
    for sheet in sheets:
        if sheet.rows:
            table = render_text(sheet, markdown=True).partition("\n\n")[2]
            parts += [f"### {sheet.caption}", table, fill(sheet.note, WIDTH)]
    write_file(document, "\n\n".join(parts) + "\n")
    text = readme.read_text(encoding="utf-8")
    said = fill(in_short(claims, others), WIDTH)
    text, num = re.subn(rf"^{BEGINNING}.*?(?=\n\n)", lambda _: said, text, count=1, flags=re.M | re.S)
    if not num:
        raise SystemExit(f"{readme}: no paragraph begins with {BEGINNING!r}")
    write_file(readme, text)


def mended(records: Sequence[Event]) -> list[Event]:
    """The records with the arms on the mended pool in the place of those on the first; empty without any."""
    found = [r | {"arm": r["arm"].removesuffix(MENDED)} for r in records if r["arm"].endswith(MENDED)]
    arms = {r["arm"] for r in found}
    rest = [r for r in records if r["arm"] not in arms and not r["arm"].endswith(MENDED)]
    return [*rest, *found] if found else []


def explore(runs: Sequence[ScoredRun]) -> list[Event]:
    """Effects and intervals at equal cost, without tests."""
    return [{**r, "p_holm": None, "verdict": NONE} for r in frontier(runs, CONTROLS, ONE_WORD)]


def _read(folder: Path) -> list[Event]:
    return [read_json(path) for path in sorted(folder.glob("*-seed-*.json"))]


def _runs(records: Sequence[Event]) -> list[ScoredRun]:
    return [ScoredRun(record["arm"], record["seed"], record["models"]) for record in records]


def in_short(claims: Sequence[Event], others: Sequence[Event]) -> str:
    """The paragraph of README: claims 1 and 2, of the paper's methods against plain federated LoRA.

    Args:
        claims: Where the labels of finance are taught raw.
        others: Where they are taught as the sentences of the rewritings; may be empty.
    """
    where = {
        "where one-word labels are taught raw (by a fault of the preparation), ": claims,
        "where they are rewritten (not registered), ": others,
    }
    effects = "; ".join(
        f"{place}FedSD {_said(some[0])}, and FedSDR's global model {_said(some[1])}"
        for place, some in (where if others else {"": claims}).items()
    )
    return (
        f"{BEGINNING} So each is compared with `fedit` scaled down to the same distance from the base"
        f" ([how](docs/frontier.md)). On five real domains: {effects}. [Design, limits and all"
        " verdicts](docs/results/study.md)."
    )


def _said(claim: Event) -> str:
    if claim["verdict"] in ("not run", "not comparable"):
        return f"was {claim['verdict']}"
    word = "more" if claim["difference"] > 0 else "less"
    interval, p = signed_interval(claim["low"], claim["high"]), p_value(claim["p"])
    seeds = f"{claim['num_seeds']} of {PLANNED} seeds, interim"
    return (
        f"gains {abs(claim['difference']):.3f} nats a token {word} ({interval}, p"
        f" {'' if p.startswith('<') else '= '}{p},"
        f" {seeds if claim['num_seeds'] < PLANNED else f'{PLANNED} seeds'})"
    )


def decide(runs: Sequence[ScoredRun], records: Sequence[Event], compared: Sequence[Event]) -> list[Event]:
    """A record for each claim."""
    changes = kept(records)
    found = [
        _between(claim, runs, changes) if claim.against else _at_equal_cost(claim, compared)
        for claim in CLAIMS
    ]
    for family in FAMILIES:
        rows = [r for r in found if r["claim"].startswith(family)]
        for record, p in zip(rows, holm([r["p"] for r in rows]), strict=True):
            record["p"] = p
    for claim, record in zip(CLAIMS, found, strict=True):
        record["verdict"] = record.get("verdict") or _verdict(claim, record)
        record.setdefault("costs", _costs(claim, runs))
    return found


def _costs(claim: Claim, runs: Sequence[ScoredRun]) -> list[float | None]:
    """Mean cost of the model, and of the one that it is compared with, over the seeds of both."""
    models = (claim.model, claim.against) if claim.against else (claim.model,)
    points = [last_points(model, runs) for model in models]
    seeds = set.intersection(*map(set, points)) or set().union(*points)
    means = [[p.cost.mean() for seed, p in some.items() if seed in seeds] for some in points]
    return [fmean(costs) if costs else None for costs in means]


def claim_sheet(claims: Sequence[Event]) -> Sheet:
    """One row for each claim."""
    return Sheet(
        "The claims",
        "llrrrrrr",
        ("claim", "verdict", "effect", "95 %", "p (Holm)", "costs", "seeds", "examples"),
        tuple(
            (
                r["claim"], f"**{r['verdict']}**", signed(r["difference"]),
                signed_interval(r["low"], r["high"]), p_value(r["p"]),
                " / ".join(number(cost, 3) for cost in r["costs"]), str(r["num_seeds"]),
                str(r["num_examples"]),
            )
            for r in claims
        ),
        tuple({key: value for key, value in r.items() if key != "by_seed"} for r in claims),
        note="Effects: gain of the arm minus the other's, in nats per token (claim 6: cost; claims 8: share"
        " of right answers). Costs: of the arm, and of the other where the two are not held to one cost."
        " Examples: test rows (claim 6: prompts; claims 8: questions). Holm's correction is over the primary"
        " arms of one kind of model at equal cost, over 4a and 4b, and over 8a and 8b. Seeds draw their rows"
        " from one pool, so p values and intervals are of other seeds, not of other pools.",
    )  # fmt: skip


def _at_equal_cost(claim: Claim, compared: Sequence[Event]) -> Event:
    arm, model = claim.model
    of_arm = [r for r in compared if (r["arm"], r["model"], r["scale"], r["of"]) == (arm, model, 1, "all")]
    if not of_arm:
        return _nothing(claim)
    found = max(of_arm, key=lambda r: r["round"])
    keys = ("difference", "low", "high", "num_seeds", "num_examples", "by_seed")
    record = {"claim": claim.name, **{key: found[key] for key in keys}, "p": found["p_holm"]}
    words = {"better": "supported", "worse": "refuted", "no worse": "undecided (no worse)"}
    return record | {"costs": [found["cost"]], "verdict": words.get(found["verdict"], found["verdict"])}


def _between(claim: Claim, runs: Sequence[ScoredRun], changes: Mapping[str, Values]) -> Event:
    assert claim.against
    mine, others = (_values(model, claim.what, runs, changes) for model in (claim.model, claim.against))
    return (
        {"claim": claim.name, **difference(mine, others)} if mine.keys() & others.keys() else _nothing(claim)
    )


def _values(model: Model, what: str, runs: Sequence[ScoredRun], changes: Mapping[str, Values]) -> Values:
    if what == "accuracy":
        return changes.get(model[0], {})
    points = last_points(model, runs)
    if what == "cost":
        return {seed: (point.cost, [""] * len(point.cost)) for seed, point in points.items()}
    return {seed: (point.test, point.domains) for seed, point in points.items()}


def _verdict(claim: Claim, record: Mapping[str, float | None]) -> str:
    low, high, p = (record[key] for key in ("low", "high", "p"))
    if low is None or high is None or p is None or p >= LEVEL or low <= 0 <= high:
        return "undecided"
    return "supported" if low * claim.better > 0 else "refuted"


def _nothing(claim: Claim) -> Event:
    empty = dict.fromkeys(("difference", "low", "high", "p"))
    return {
        "claim": claim.name,
        **empty,
        "num_seeds": 0,
        "num_examples": 0,
        "by_seed": [],
        "verdict": "not run",
    }


def _count(runs: Sequence[ScoredRun]) -> str:
    """Which cells there are."""
    seeds: dict[str, list[int]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        seeds.setdefault(run.arm, []).append(run.seed)
    there = "; ".join(f"{arm}: {', '.join(map(str, some))}" for arm, some in sorted(seeds.items()))
    missing = [arm for arm in PRIMARY if len(seeds.get(arm, [])) < PLANNED]
    interim = (
        f" Fewer than the eight planned: {', '.join(missing)}. Their verdicts are interim: looking more than"
        " once is not corrected for."
    )
    return f"Seeds that are there: {there}." + interim * bool(missing)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
