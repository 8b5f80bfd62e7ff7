"""Tables of what checkers say of rewritings and answers, and of win rates.

Goes in: records of `measure.paradox` and `measure.judge`. Comes out: `Sheet`s, as in `tables`.
"""

from collections.abc import Sequence

from fedsdr.report.tables import NONE, Sheet, number
from fedsdr.storage import Event

_DIGITS = {"omission": 2, "unsupported": 2, "words": 1, "length_ratio": 2, "filler_rate": 2, "redundancy": 3}
"""Kinds in the order of their columns, and how many decimals they are shown with."""
_HEADS = ("omits", "unsupported", "words", "length ratio", "fillers", "repeats")


def paradox_checks_sheet(records: Sequence[Event]) -> Sheet:
    """What every checker says of every kind of text, by domain, with 95 % intervals.

    Args:
        records: Of `paradox_records` and `style_differences`.
    """
    cells: dict[tuple[str, str, str], dict[str, Event]] = {}
    for record in records:
        place = (record["domain"], record["of"], record["checker"])
        cells.setdefault(place, {})[record["kind"]] = record
    # Domains in the order of their names, then all; texts and checkers in the order of the records.
    ordered = sorted(cells.items(), key=lambda item: (item[0][0] == "all", item[0][0]))
    rows = []
    for place, found in ordered:
        counts = dict.fromkeys(str(found[kind]["num"]) for kind in _DIGITS if kind in found)
        unreadable = max(record["num_unreadable"] for record in found.values())
        shown = (_value(found.get(kind), digits) for kind, digits in _DIGITS.items())
        rows.append((*place, *shown, " / ".join(counts), str(unreadable)))
    return Sheet(
        "Rewrite paradox by checker, with 95 % intervals",
        "lll" + "r" * (len(_DIGITS) + 2),
        ("domain", "text", "checker", *_HEADS, "n", "unreadable"),
        tuple(rows),
        tuple(records),
        num_summary=sum(domain == "all" for (domain, _, _), _ in ordered),
        note="Omits: share of texts that do not entail the true response; exact: that lose its label, final"
        " answer, a fact or a test, of those that carry one. Unsupported: share of texts that prompt and true"
        " response together do not entail; exact: with another label, or a number found in neither. What a"
        " checker says of true responses and of true paraphrases are its false alarms. Words: per text."
        " Fillers: per 100 words. Repeats: share of word 3-grams that repeat an earlier one. n: texts counted"
        " for omits, then for the rest, where they differ. Unreadable: texts without a verdict, counted"
        " neither way. Intervals cover the draw of examples; all is pooled over them.",
    )


def win_rate_sheet(records: Sequence[Event]) -> Sheet:
    """How often a judge prefers one model's answers to another's, by domain.

    Args:
        records: Of `win_rate`.
    """
    rows = [
        (
            record["a"],
            record["b"],
            record["domain"],
            *(str(record[name]) for name in ("wins", "ties", "losses")),
            _value(record | {"value": record["rate"]}, 2),
            number(record["agreement"], 2),
            number(record["first_rate"], 2),
            str(record["num"]),
            str(record["num_unreadable"]),
        )
        for record in records
    ]
    return Sheet(
        "Win rates by a judge: (wins + ties / 2) / n, with 95 % interval",
        "lll" + "r" * 8,
        ("model", "against", "domain", "wins", "ties", "losses", "win rate", "agreement", "first", "n",
         "unreadable"),
        tuple(rows),
        tuple(records),
        note="Each pair of answers is judged in both orders: a win or loss where both orders prefer the same"
        " answer, else a tie; equal answers are ties. Agreement: share of judged pairs on which both orders"
        " give one verdict. First: share of verdicts for one answer that name the one shown first; 0.50 where"
        " place does not matter. Unreadable: prompts with a verdict other than A, B or tie; not in n. The"
        " interval covers the draw of prompts, not the judge's taste.",
    )  # fmt: skip


def _value(record: Event | None, digits: int) -> str:
    if record is None or record["value"] is None:
        return NONE
    if record["low"] is None:
        return number(record["value"], digits)
    return f"{record['value']:.{digits}f} [{record['low']:.{digits}f}, {record['high']:.{digits}f}]"
