"""Model outputs: figures and sheets of the rewrite paradox as checked, benchmarks, and win rates."""

from collections.abc import Mapping, Sequence

from fedsdr.analysis.claims import over_all_domains
from fedsdr.report.blocks import Block, Examples, ShownExample, Table, Words
from fedsdr.report.figures import Figure, limited
from fedsdr.report.plots import Series, Value, bar_groups, bar_panel
from fedsdr.report.sheets import Sheet, number, with_interval
from fedsdr.stats import wilson
from fedsdr.storage import Event

OF = {
    "Texts that are taught": {
        "true response": Series("true response", "s-true"),
        "rewriting": Series("rewriting", "s-new"),
        "true paraphrase": Series("true paraphrase", "s-taught"),
    },
    "Answers of the models": {
        "base answer": Series("base model's answer", "s-base"),
        "global answer": Series("global model's answer", "s-global"),
        "personalised answer": Series("personalised model's answer", "s-personalised"),
    },
}
"""Figure -> the texts that it compares, by their label `of`."""
KINDS = {
    "omission": ("omission, share", 2),
    "unsupported": ("unsupported, share", 2),
    "length_ratio": ("length ratio", 2),
    "filler_rate": ("fillers per 100 words", 2),
    "redundancy": ("repeated 3-grams, share", 2),
    "words": ("words", 1),
}
"""Kind -> its label, and decimals."""
MODELS = {model: Series(model, f"s-{model}") for model in ("base", "global", "personalised")}
PAIRS = ("s-global", "s-personalised", "s-new", "s-taught")


def paradox_blocks(name: str, record: Event) -> list[Block]:
    """Omission, unsupported statements and padding as counted by checkers, and texts to read."""
    records = record["records"]
    figures = [checks_figure(f"{name}-{number}", title, series, records)
               for number, (title, series) in enumerate(OF.items(), start=1)]  # fmt: skip
    blocks: list[Block] = [Table(f"{name}-checks", checks_sheet(records)), *(one for one in figures if one)]
    if record.get("examples"):
        worst = [
            ShownExample(one["domain"], one["instruction"], one["input"],
                    (Words("true response", one["response"]), Words(one["of"], one["text"])),
                    f"{one['of']}: {one['why']}")
            for one in record["examples"]
        ]  # fmt: skip
        blocks.append(Examples("The worst texts, with their true responses", worst))
    return blocks


def checks_figure(
    key: str, title: str, series: Mapping[str, Series], records: Sequence[Event]
) -> Figure | None:
    """Bars by domain of every kind, for each checker; None if none of these texts was checked."""
    texts = [record for record in records if record["of"] in series and record["kind"] in KINDS]
    found = [record for record in texts if record["value"] is not None]
    panels = []
    for checker, kind in dict.fromkeys((record["checker"], record["kind"]) for record in found):
        label, digits = KINDS[kind]
        is_share = kind in ("omission", "unsupported")
        own = [record for record in found if (record["checker"], record["kind"]) == (checker, kind)]
        bars = bar_groups((record["domain"], series[record["of"]], _bar(record, "value")) for record in own)
        measure = f"{label}; by {checker}" if is_share else label
        panels.append(bar_panel(measure, bars, high=1.0 if is_share else None, digits=digits))
    if not panels:
        return None
    used = tuple(one for of, one in series.items() if any(record["of"] == of for record in found))
    return Figure(
        key,
        f"{title}, by domain",
        "What the named checker finds; lines are 95 % intervals. For true responses and true paraphrases this"
        " is the checker's false-positive rate." + limited(len({record["domain"] for record in found})),
        used,
        tuple(panels),
        found,
    )


def checks_sheet(records: Sequence[Event]) -> Sheet:
    """Every kind over all domains, by checker and text."""
    found = over_all_domains(records)
    cells = {(r["checker"], r["of"], r["kind"]): r for r in found}
    rows = dict.fromkeys((record["checker"], record["of"]) for record in found)
    kinds = [kind for kind in KINDS if any(record["kind"] == kind for record in found)]
    nums = {row: sorted({r["num"] for r in found if (r["checker"], r["of"]) == row}) for row in rows}
    return Sheet(
        "Rewrite paradox as checked, all domains, with 95 % intervals",
        "ll" + "r" * (len(kinds) + 1),
        ("checker", "of", *(KINDS[kind][0] for kind in kinds), "n"),
        tuple(
            (
                *row,
                *(with_interval(cells.get((*row, kind)), KINDS[kind][1]) for kind in kinds),
                " / ".join(map(str, nums[row])),
            )
            for row in rows
        ),
        tuple(records),
        note="Omission: the text lacks what the true response says. Unsupported: prompt and true response do"
        " not support the text. Length ratio: words over words of the true response.",
    )


def benchmark_blocks(name: str, record: Event) -> list[Block]:
    """Benchmarks by task and metric, with chance."""
    records = record["records"]
    return [benchmark_figure(name, records), Table(f"{name}-table", benchmark_sheet(records))]


def benchmark_figure(name: str, records: Sequence[Event]) -> Figure:
    """Bars of every task, a panel for each metric; subjects of a task are only in the sheet's records."""
    whole = [record for record in records if not record.get("subject")]
    chance = {r["task"]: ("chance", r["chance"]) for r in whole if r["chance"] is not None}
    panels = []
    for metric in dict.fromkeys(record["metric"] for record in whole):
        bars = bar_groups(
            (r["task"], MODELS[r["model"]], (r["value"], wilson(r["value"], r["num"])))
            for r in whole
            if r["metric"] == metric
        )
        panels.append(bar_panel(f"{metric}, share right", bars, high=1.0, marks=chance))
    used = dict.fromkeys(record["model"] for record in records)
    return Figure(
        name,
        "Benchmarks",
        "Share right, 0 to 1; lines are 95 % intervals (Wilson), dotted lines are chance.",
        tuple(MODELS[model] for model in used),
        tuple(panels),
        records,
    )


def benchmark_sheet(records: Sequence[Event]) -> Sheet:
    """Task and metric by model; subjects are only in the records."""
    models = list(dict.fromkeys(record["model"] for record in records))
    whole = [record for record in records if not record.get("subject")]
    cells = {(r["task"], r["metric"], r["model"]): r for r in whole}
    rows = {(record["task"], record["metric"]): record for record in whole}
    return Sheet(
        "Benchmarks: share right ± standard error",
        "ll" + "r" * (len(models) + 2) + "l",
        ("task", "metric", *models, "chance", "n", "origin"),
        tuple(
            (
                *place,
                *(_with_error(cells.get((*place, model))) for model in models),
                number(record["chance"], 2),
                str(record["num"]),
                record["origin"],
            )
            for place, record in rows.items()
        ),
        tuple(records),
        note="Where all or none are right, the standard error is 0: the 95 % interval (Wilson) is shown.",
    )


def retention_blocks(name: str, record: Event) -> list[Block]:
    """Retention by task: the base's values, and the global model's differences."""
    records = record["records"]
    rows = tuple(
        (
            r["task"],
            r["metric"],
            number(r["base"], 3),
            number(r["tuned"], 3),
            with_interval(r, 3),
            str(r["num"]),
        )
        for r in records
    )
    sheet = Sheet(
        "Retention: difference to the base, by question, with 95 % interval",
        "llrrrr",
        ("task", "metric", "base", "global", "difference", "n"),
        rows,
        tuple(records),
        note="Shares of right answers, but for loss, in nats a word, where more is worse. Mean: of the tasks"
        " with acc or acc_norm; its interval covers the draw of questions, not of tasks.",
    )
    return [Table(f"{name}-table", sheet)]


def win_rate_blocks(name: str, record: Event) -> list[Block]:
    """Win rates by domain."""
    records = record["records"]
    pairs = dict.fromkeys((one["a"], one["b"]) for one in records)
    series = {pair: Series(f"{pair[0]} against {pair[1]}", PAIRS[number % len(PAIRS)])
              for number, pair in enumerate(pairs)}  # fmt: skip
    bars = bar_groups((one["domain"], series[one["a"], one["b"]], _bar(one, "rate")) for one in records)
    panel = bar_panel("win rate", bars, high=1.0, marks=dict.fromkeys(bars, ("even", 0.5)))
    figure = Figure(
        name,
        "Win rates by a judge",
        "Wins and half the ties, as a share; the judge saw both orders. Dotted: neither is better. Lines are"
        " 95 % intervals over prompts." + limited(len({one["domain"] for one in records})),
        tuple(series.values()),
        (panel,),
        records,
    )
    return [figure, Table(f"{name}-table", win_rate_sheet(records))]


def win_rate_sheet(records: Sequence[Event]) -> Sheet:
    """Wins, ties and losses, and the judge's reliability."""
    counts = ("num", "wins", "ties", "losses", "num_unreadable")
    return Sheet(
        "Win rates by a judge, with 95 % interval",
        "lll" + "r" * 8,
        ("model", "against", "domain", "win rate", "n", "wins", "ties", "losses", "unreadable",
         "orders agree", "first preferred"),
        tuple(
            (
                one["a"],
                one["b"],
                one["domain"],
                with_interval(one, 2, "rate"),
                *(str(one[key]) for key in counts),
                number(one["agreement"], 2),
                number(one["first_rate"], 2),
            )
            for one in records
        ),
        tuple(records),
        note="A win or a loss counts if both orders have it. Orders agree: share of prompts where both orders"
        " prefer the same answer. First preferred: share of verdicts for the answer shown first; 0.5 is no"
        " preference.",
    )  # fmt: skip


def _bar(record: Event, key: str) -> Value | None:
    if (value := record[key]) is None:
        return None
    return value, None if record["low"] is None else (record["low"], record["high"])


def _with_error(record: Event | None) -> str:
    if record is None or record["stderr"] is None:
        return number(record["value"] if record else None, 2)
    if not record["stderr"]:  # if all or none are right, the share is still uncertain
        low, high = wilson(record["value"], record["num"])
        return f"{record['value']:.2f} [{low:.2f}, {high:.2f}]"
    return f"{record['value']:.2f} ± {record['stderr']:.2f}"
