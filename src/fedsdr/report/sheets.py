"""Tables of a run: scores and held-out losses here, shown as text, Markdown or, by `page`, HTML.

Input: the pooled numbers of evaluations (`metrics.Scores`). Output: a `Sheet` with the displayed cells, and
the same numbers as records for a CSV file. The tables of distillation, training and costs are in `events`.
"""

import csv
import io
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fedsdr.metrics import Scores, all_fell_back
from fedsdr.stats import mean_interval, wilson
from fedsdr.storage import Event

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
MODELS = ("base", "global", "personalised")
NONE = "-"
MOST_ROWS = 500
"""Maximum rows of a table on a page. Some tables have one per client, and a simulation may have thousands."""


@dataclass(frozen=True)
class Sheet:
    """A table ready for display."""

    caption: str
    align: str
    """One letter for each column: l or r."""
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    records: tuple[Event, ...]
    """The numbers behind the cells, unrounded."""
    num_summary: int = 0
    """Number of summary rows at the end."""
    note: str = ""
    """How to read the numbers; shown on pages, and in the Markdown tables of a grid."""

    @property
    def shown(self) -> tuple[tuple[str, ...], ...]:
        """The rows that fit on a page: all, or the first ones and the summary rows."""
        num_plain = len(self.rows) - self.num_summary
        return (*self.rows[: min(MOST_ROWS, num_plain)], *self.rows[num_plain:])


def score_sheet(base: Scores, final: Scores) -> Sheet:
    """Exact score by domain and mean, of base, global and personalised model, with 95 % intervals.

    Args:
        base: Numbers of the base model.
        final: Numbers after the last round; {} if there are none yet.

    Returns:
        A sheet with "-" if a domain has no ground truth or a model does not exist; without rows if no domain
        has ground truth.
    """
    records = score_records(base, final)
    if all(record["score"] is None for record in records):
        records = []
    cells = {(record["domain"], record["model"]): record for record in records}
    rows = []
    for domain in dict.fromkeys(record["domain"] for record in records):
        found = [cells.get((domain, model)) for model in MODELS]
        counts = dict.fromkeys(str(int(record["num_scored"])) for record in found if record)
        cells_of_row = (with_interval(record, 2, "score") for record in found)
        rows.append((domain, *cells_of_row, " / ".join(counts)))
    return Sheet(
        "Exact score: share of right answers, with 95 % interval; n answers were scored",
        "lrrrr",
        ("domain", *MODELS, "n"),
        tuple(rows),
        tuple(records),
        num_summary=sum(row[0] == "mean" for row in rows),
        note="An answer is right if it keeps the label, final answer, facts or passed tests that its example"
        " carries; a domain without any has no score, and the mean is over domains with one. Intervals"
        " (Wilson) cover the draw of test examples, not other seeds. Where n is one number, the models"
        " answered the same prompts, so overlapping intervals do not show that two models score alike.",
    )


def score_records(base: Scores, final: Scores) -> list[Event]:
    """One record for each domain and model: score, ends of its interval, number of scored answers.

    The mean is the plain mean over the domains with a score; its interval is `mean_interval`.
    """
    records: list[Event] = []
    for model, by_domain in _by_model(base, final).items():
        shares: list[float] = []
        intervals: list[tuple[float, float]] = []
        for domain, metrics in _mean_last(by_domain).items():
            record = {"domain": domain, "model": model, "score": metrics.get("score")}
            if record["score"] is None:
                low = high = None
            elif domain == "mean":
                low, high = mean_interval(shares, intervals)
            else:
                low, high = wilson(metrics["score"], metrics["num_scored"])
                shares.append(metrics["score"])
                intervals.append((low, high))
            records.append(record | {"low": low, "high": high, "num_scored": metrics["num_scored"]})
    return records


def loss_sheet(base: Scores, final: Scores) -> Sheet:
    """Held-out loss by domain and mean, on true responses and on rewritings, of the three models.

    Where all rewritings of a domain's test responses fell back, only the row of true responses is shown. The
    mean on rewritings would include that domain's true responses, so it is not shown either.
    """
    records = loss_records({0: base}, ("base",)) + loss_records({1: final}, MODELS[1:])
    cells = {(record["domain"], record["on"], record["model"]): record["loss"] for record in records}

    pairs = list(dict.fromkeys((record["domain"], record["on"]) for record in records))
    note = ""
    if without := all_fell_back(base, final):
        pairs = [pair for pair in pairs if pair[0] not in (*without, "mean") or pair[1] != "rewritings"]
        note = f" No row of rewritings, since all fell back: {', '.join(without)}; so no mean of them either."
    rows = [
        (domain, on, *(number(cells.get((domain, on, model)), 3) for model in MODELS)) for domain, on in pairs
    ]
    return Sheet(
        "Held-out loss: nats per response token of the test examples",
        "llrrr",
        ("domain", "on", *MODELS),
        tuple(rows),
        tuple({key: value for key, value in record.items() if key != "round"} for record in records),
        num_summary=len([row for row in rows if row[0] == "mean"]),
        note="On the test examples' true responses, and on the model's own rewritings of them (the true"
        " response where the rewriting fell back). Lower means that the model finds the text likelier."
        + note,
    )


def loss_records(tables: Mapping[int, Scores], models: Sequence[str]) -> list[Event]:
    """Held-out losses over the evaluated rounds.

    Args:
        tables: Round -> numbers.
        models: Names of models; "base" reads the global model's numbers, which in round 0 are the base's.
    """
    return [
        {"round": server_round, "domain": domain, "on": on, "model": model, "loss": metrics[name]}
        for server_round, table in tables.items()
        for model in models
        for domain, metrics in _mean_last(table.get("global" if model == "base" else model, {})).items()
        for on, name in (("true responses", "loss"), ("rewritings", "loss_distilled"))
        if name in metrics
    ]


def answer_sheet(base: Scores, final: Scores) -> Sheet:
    """Wording of the models' answers, by domain and mean: unsupported statements, length, padding.

    If the averaged adapter made more unsupported statements than plain FedSD's, rectification would not help
    (docs/paper_map.md); this table would show it.
    """
    columns = {
        "unsupported_rate": ("unsupported", 2),
        "words": ("words", 1),
        "filler_rate": ("fillers", 2),
        "redundancy": ("repeats", 2),
        "cut_off_rate": ("cut off", 2),
        "choice_score": ("likeliest", 2),
    }
    return _by_domain_and_model(
        base,
        final,
        columns,
        "Wording of the answers to the test prompts, and choices by likelihood",
        note="Unsupported: share of answers with another label, or a number found in neither prompt nor true"
        " response; a stand-in that misses false statements in words. Words: per answer. Fillers: per 100"
        " words. Repeats: share of word 3-grams that repeat an earlier one. Cut off: share of answers that"
        " reached eval.max_new_tokens before they ended. Likeliest: share of examples with choices where the"
        " true one is the likeliest answer of all.",
    )


def label_sheet(base: Scores, final: Scores) -> Sheet:
    """Scores that a constant label cannot raise, next to the exact score; no rows without classes."""
    columns = {
        "score": ("score", 2),
        "majority_share": ("majority", 2),
        "balanced_accuracy": ("balanced", 2),
        "macro_f1": ("macro-F1", 2),
        "matthews": ("Matthews", 2),
        "choice_score": ("likeliest", 2),
        "choice_balanced_accuracy": ("likeliest, balanced", 2),
    }
    return _by_domain_and_model(
        _without_mean(base),  # its score also covers other domains
        _without_mean(final),
        columns,
        "Labels: scores that one label for everything does not raise",
        needed="majority_share",
        note="Majority: share of the most frequent true label, the score of a model that always gives it."
        " Where it is 1, all true labels are one class, and balanced, macro-F1 and Matthews are left out."
        " Balanced: mean over the labels of the share that is given right. Macro-F1: mean over the labels"
        " of F1. Matthews: correlation of true and given labels; 0 for a model that gives one label for"
        " everything. Likeliest: share of examples whose true label is the likeliest choice.",
    )


def text_sheet(base: Scores, final: Scores) -> Sheet:
    """Answers compared with true responses word by word; no rows if none were."""
    columns = {"exact_match": ("exact match", 2), "token_f1": ("token F1", 2), "rouge_l": ("ROUGE-L", 2)}
    return _by_domain_and_model(
        base,
        final,
        columns,
        "Free text: answers compared with the true responses",
        needed="rouge_l",
        note="They compare words, not meaning: a right answer in other words scores low.",
    )


def render_text(sheet: Sheet, markdown: bool = False) -> str:
    """Write a sheet as lines of text, caption first: aligned for a terminal, or as a Markdown table."""
    rows = [sheet.heads, *sheet.rows]
    if markdown:
        rows = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    least = 3 if markdown else 0  # a delimiter cell needs a hyphen
    widths = [max(least, *map(len, column)) for column in zip(*rows, strict=True)]
    columns = list(zip(sheet.align, widths, strict=True))
    head, *body = (
        [
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, (side, width) in zip(row, columns, strict=True)
        ]
        for row in rows
    )
    if markdown:
        rule = ["-" * width if side == "l" else "-" * (width - 1) + ":" for side, width in columns]
        lines = ["| " + " | ".join(line) + " |" for line in (head, rule, *body)]
    else:
        rule = ["-" * width for width in widths]
        if sheet.num_summary:
            body.insert(len(body) - sheet.num_summary, rule)
        lines = ["  ".join(line).rstrip() for line in (head, rule, *body)]
    return "\n".join([sheet.caption, "", *lines])


def to_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Format records as CSV with a header line; columns in order of first appearance."""
    names = dict.fromkeys(name for record in records for name in record)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    for record in records:
        # Seven digits are the precision of float32; the log has the rest.
        writer.writerow({k: f"{v:.7g}" if isinstance(v, float) else v for k, v in record.items()})
    return text.getvalue()


def number(value: float | None, digits: int) -> str:
    """Format a number with the given decimals, or "-" if it is missing."""
    return NONE if value is None else f"{value:,.{digits}f}"


def p_value(value: float | None) -> str:
    """Format a p value with three decimals, or "-" if it is missing."""
    return "< 0.001" if value is not None and value < 0.001 else number(value, 3)


def signed(value: float | None, digits: int = 3) -> str:
    """Format a difference with its sign, or "-" if it is missing."""
    return NONE if value is None else f"{value:+.{digits}f}"


def signed_interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """Format the interval of a difference, or "-" if it is missing."""
    return NONE if low is None else f"[{signed(low, digits)}, {signed(high, digits)}]"


def with_interval(record: Event | None, digits: int, key: str = "value") -> str:
    """Format a record's value and the ends of its interval, low and high; "-" if the value is missing."""
    if record is None or record[key] is None:
        return NONE
    if record["low"] is None:
        return number(record[key], digits)
    return f"{record[key]:.{digits}f} [{record['low']:.{digits}f}, {record['high']:.{digits}f}]"


def grouped(items: Iterable[tuple[Key, Item]]) -> dict[Key, list[Item]]:
    """Group items by their keys, in order of first appearance."""
    groups: dict[Key, list[Item]] = {}
    for key, item in items:
        groups.setdefault(key, []).append(item)
    return groups


def _by_domain_and_model(
    base: Scores,
    final: Scores,
    columns: Mapping[str, tuple[str, int]],
    caption: str,
    note: str,
    needed: str = "",
) -> Sheet:
    """One row for each domain, or the mean, and each model.

    Args:
        base: Numbers of the base model.
        final: Numbers after the last round.
        columns: Metric -> its head, and decimals.
        caption: Caption of the sheet.
        note: Note of the sheet.
        needed: Rows without this metric are left out.
    """
    by_model = {model: _mean_last(found) for model, found in _by_model(base, final).items()}
    records: list[Event] = [
        {"domain": domain, "model": model} | {name: found[domain].get(name) for name in columns}
        for domain in _mean_last({domain: {} for found in by_model.values() for domain in found})
        for model, found in by_model.items()
        if domain in found and (not needed or needed in found[domain])
    ]
    return Sheet(
        caption,
        "ll" + "r" * len(columns),
        ("domain", "model", *(head for head, _ in columns.values())),
        tuple(
            (r["domain"], r["model"], *(number(r[name], places) for name, (_, places) in columns.items()))
            for r in records
        ),
        tuple(records),
        num_summary=sum(record["domain"] == "mean" for record in records),
        note=note,
    )


def _without_mean(scores: Scores) -> Scores:
    return {
        model: {domain: row for domain, row in by_domain.items() if domain != "mean"}
        for model, by_domain in scores.items()
    }


def _by_model(base: Scores, final: Scores) -> dict[str, dict[str, dict[str, float]]]:
    return {
        "base": base.get("global", {}),
        "global": final.get("global", {}),
        "personalised": final.get("personalised", {}),
    }


def _mean_last(by_domain: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Domains in the order of their names, then the mean."""
    return dict(sorted(by_domain.items(), key=lambda item: (item[0] == "mean", item[0])))
