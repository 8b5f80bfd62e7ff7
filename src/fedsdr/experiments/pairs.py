"""`fedsdr analyze`: measure rewritings in a plain file of pairs, without a run. Shared with `measure`."""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedsdr.analysis.alignment import cluster, text_alignment
from fedsdr.analysis.claims import Word, claim, only, verdict_of
from fedsdr.analysis.paradox import (
    PARAPHRASE,
    REWRITING,
    TRUE,
    Pair,
    check,
    holds,
    paradox_records,
    style_differences,
    worst,
)
from fedsdr.data.files import Row, file_rows
from fedsdr.data.readers import fill_choices, to_records
from fedsdr.data.sources import BUILT_IN, RESERVED
from fedsdr.errors import UserError
from fedsdr.evaluate.entailment import Checker, JudgeChecker, NliChecker
from fedsdr.model.remote import Judge
from fedsdr.progress import say
from fedsdr.report.sheets import grouped, signed_interval
from fedsdr.stats import t_quantile
from fedsdr.storage import Event

SEED = 0
"""Seed of the draws: the same file gives the same numbers."""
ALL, UNNAMED = "all", "unnamed"
"""Domain of rows without one: if no row has one, and if other rows do."""
PARAPHRASES = BUILT_IN / "paraphrases.jsonl"
"""True paraphrases, written by hand, 8 for each built-in domain. Each states exactly what its response
states, so anything that a check finds there is a false positive. Do not change them to suit a changed
check."""
NUM_WORST = 12
"""Number of examples shown on the page."""


def analyze(
    path: Path, clusters: int, nli: str, judge_url: str, judge_model: str, runs_programs: bool = False
) -> dict[str, Event]:
    """Measure the rewritings in a file.

    Args:
        path: As for `read_pairs`.
        clusters: If the file names no domains: number of instruction clusters that replace clients; 0: none.
        nli: Name or folder of an NLI cross-encoder; empty: none.
        judge_url: Base address of a judge; empty: none.
        judge_model: Name of the model on that server.
        runs_programs: Whether tests in the file may run; otherwise they are ignored.

    Returns:
        "alignment", if there are several domains or clusters, and "paradox".

    Raises:
        UserError: The file is malformed, or too short to compare.
    """
    start = time.monotonic()
    pairs = read_pairs(path)
    if (num := sum(bool(example.tests) for example, _ in pairs)) and not runs_programs:
        say(
            f"{num} rows have tests, which are programs and do not run: they are ignored; add"
            " --run-programs if you trust the data"
        )
        pairs = [(replace(example, tests=""), text) for example, text in pairs]
    domains = sorted({example.domain for example, _ in pairs})
    if clusters and len(domains) > 1:
        raise UserError(f"{path} contains the domains {', '.join(domains)}: leave out --clusters")
    if clusters == 1 or clusters > len(pairs):
        raise UserError(f"--clusters = {clusters} of {len(pairs)} rows: set 2 or more, but fewer than rows")
    names = [example.domain for example, _ in pairs]
    if clusters:
        names = cluster([example.instruction for example, _ in pairs], clusters, SEED)
    named = sorted(zip(names, pairs, strict=True), key=lambda item: item[0])
    groups = grouped((name, (example.response, text)) for name, (example, text) in named)
    made: dict[str, Event] = {}
    try:
        if len(groups) < 2:
            raise UserError("the rows have no domains; --clusters 5 uses clusters of instructions instead")
        made["alignment"] = alignment(groups, SEED)
    except UserError as reason:
        say(f"no alignment: {reason}")
    difference = made["alignment"]["records"] if made else None
    made["paradox"] = paradox({REWRITING: pairs}, checkers(nli, judge_url, judge_model), difference)
    given = {"--clusters": clusters, "--nli": nli, "--judge": judge_url, "--judge-model": judge_model}
    options = [str(word) for option, value in given.items() if value for word in (option, value)]
    options += ["--run-programs"] if runs_programs else []
    command = shlex.join(["fedsdr", "analyze", str(path), *options])
    common = {"command": command, "seconds": time.monotonic() - start}
    return {name: {"measure": name, **common, **found} for name, found in made.items()}


def read_pairs(path: Path) -> list[Pair]:
    """Read examples with their rewritings.

    Args:
        path: A file of examples, as for `data.readers.read_file`, whose rows also have `distilled` and, if
            there are domains, `domain`. If a row has `first`, as in a client's own distilled.jsonl, that is
            its rewriting: the teacher's text before fall-back.

    Raises:
        UserError: States file and line, what was found and what was expected.
    """
    rows = file_rows(path)
    missing = UNNAMED if any(row.get("domain") for _, row in rows) else ALL
    domains = [str(row.get("domain") or missing) for _, row in rows]
    for name in RESERVED:
        if any(row.get("domain") == name for _, row in rows):
            raise UserError(f"{path}: a domain cannot be named {name!r}: tables use this name for a row")
    records = fill_choices([to_records([row], domain)[0] for row, domain in zip(rows, domains, strict=True)])
    return list(zip((record.example for record in records), map(_rewriting, rows), strict=True))


def checkers(nli: str, judge_url: str, judge_model: str) -> list[Checker | None]:
    """The exact checks (None), and the checkers selected by the options.

    Raises:
        UserError: The NLI model cannot be read, or as for `judge_at`.
    """
    judges = [JudgeChecker(judge_at(judge_url, judge_model))] if judge_url or judge_model else []
    return [None, *([NliChecker(nli)] if nli else []), *judges]


def judge_at(url: str, model: str) -> Judge:
    """The judge selected on the command line.

    Raises:
        UserError: One of the two is missing, or the address is invalid.
    """
    if not (url and model):
        raise UserError(f"--judge = {url!r} and --judge-model = {model!r}: set both, or neither")
    if not url.startswith(("http://", "https://")):
        raise UserError(
            f"--judge = {url} does not begin with http:// or https://; set an address such as"
            " http://localhost:8000/v1"
        )
    return Judge(url, model)


def alignment(texts: Mapping[str, Sequence[tuple[str, str]]], seed: int) -> Event:
    """Similarity of the words of clients or domains, with its claim."""
    records = text_alignment(texts, seed)
    verdict = claim(
        "Rewriting makes the clients' words more alike",
        mean_difference(records, "js"),
        -1,
        "Jensen-Shannon divergence beyond chance, distilled minus raw:",
    )
    return {"records": records, "notes": [], "verdicts": [verdict]}


def mean_difference(records: Sequence[Event], measure: str) -> Event:
    """Mean over pairs of clients of a measure, distilled minus raw."""
    return only(records, {"measure": measure, "view": "difference", "a": "mean"})


def paradox(
    texts: Mapping[str, Sequence[Pair]],
    with_checkers: Sequence[Checker | None],
    likeness: Sequence[Event] | None,
) -> Event:
    """The rewrite paradox by every checker, the checkers' false positives, and the worst examples.

    Args:
        texts: Label of the texts ("rewriting", "global answer", ...) -> examples with them.
        with_checkers: From `checkers`.
        likeness: Records of `alignment`, if available: in the paradox, texts become more similar.
    """
    first = next(iter(texts.values()))
    known = {
        TRUE: [(example, example.response) for example, _ in first],
        PARAPHRASE: read_pairs(PARAPHRASES),
    }
    records: list[Event] = []
    examples: list[Event] = []
    for checker in with_checkers:
        for of, pairs in {**known, **texts}.items():
            verdicts = check(pairs, checker)
            records += paradox_records(pairs, of, verdicts)
            if of in texts:
                examples += worst(pairs, of, verdicts, NUM_WORST // len(texts))
    notes = [
        f"{checker.name}: the ends of {checker.num_truncated} premises were cut off."
        for checker in with_checkers
        if isinstance(checker, NliChecker) and checker.num_truncated
    ]
    found: Event = {"records": records, "examples": examples, "notes": notes, "verdicts": []}
    if REWRITING in texts:
        records += style_differences(texts[REWRITING], REWRITING)
        found["conditions"] = holds(records)
        found["verdicts"] += _paradox_verdicts(found["conditions"], likeness)
    return found


def _paradox_verdicts(conditions: Sequence[Event], likeness: Sequence[Event] | None) -> list[Event]:
    """Whether all three conditions of the paradox hold, for each checker."""
    aligned: Word = "undecided"
    parts = ["alignment was not measured"]
    if likeness is not None:
        gain = mean_difference(likeness, "js")
        aligned, parts = verdict_of(gain["low"], gain["high"], -1), [f"divergence {_shown(gain)}"]
    style = [one for one in conditions if one["kind"] != "unsupported"]
    padded = _any_of([_corrected(one, len(style)) for one in style])
    parts += [f"{one['kind'].replace('_', ' ')} {_shown(one)}" for one in style]
    verdicts = []
    for checker in dict.fromkeys(one["checker"] for one in conditions):
        alarms = [one for one in conditions if (one["checker"], one["kind"]) == (checker, "unsupported")]
        words: list[Word] = [aligned, padded]
        words += [verdict_of(one["low"], one["high"], 1) for one in alarms] or ["undecided"]
        changes = "; ".join(
            [*(f"unsupported beyond {one['against']}s {_shown(one)}" for one in alarms), *parts]
        )
        verdicts.append(
            {
                "claim": f"The rewrite paradox ({checker}): texts become more alike, less true, and padded",
                "verdict": next((word for word in ("refuted", "undecided") if word in words), "supported"),
                "text": f"Changes with 95 % intervals: {changes}. Texts are padded if one of three changes in"
                " style is above 0 after Bonferroni's correction.",
            }
        )
    return verdicts


def _corrected(condition: Event, num: int) -> Word:
    """Verdict on one of several differences, with Bonferroni's correction of its 95 % interval."""
    freedom = condition["num"] - 1
    widened = t_quantile(freedom, num) / t_quantile(freedom)
    middle = (condition["low"] + condition["high"]) / 2
    half = widened * (condition["high"] - condition["low"]) / 2
    return verdict_of(middle - half, middle + half, 1)


def _any_of(words: Sequence[Word]) -> Word:
    if "supported" in words:
        return "supported"
    return "refuted" if words and set(words) == {"refuted"} else "undecided"


def _shown(record: Event) -> str:
    """Difference with its interval."""
    if record["low"] is None:
        return "unknown"
    return (
        f"{record.get('difference', record['value']):+.3f} {signed_interval(record['low'], record['high'])}"
    )


def _rewriting(row: Row) -> str:
    place, values = row
    found = values.get("first") or values.get("distilled")
    if not isinstance(found, str) or not found.strip():
        raise UserError(f"{place}: distilled = {found!r}; expected the rewriting of the output, a text")
    return found
