"""How often the checks err on texts as models write them: a table of correct and wrong ones, judged by hand.
A false alarm is a correct text judged to lose its ground truth, a miss a wrong one judged to keep it. The
texts were written in seven parts. The checks were improved on each part after they had been scored on it, so
the table guards against regressions; it does not measure them on unseen texts. The blind table does: its
author had not seen the checks, and it was scored once, after the last change (docs/paper_map.md). Nothing was
improved on it.
"""

import json
from collections import Counter
from pathlib import Path

from fedsdr.data.checks import lost
from fedsdr.data.examples import Example


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(__file__).with_name(name).read_text("utf-8").splitlines()]


TABLE, BLIND = read("verdicts.jsonl"), read("verdicts_blind.jsonl")
KINDS = ("label", "option", "answer", "facts", "tests")
MAX_FALSE_ALARMS, MAX_MISSES = 0.02, 0.01


def _example(row: dict) -> Example:
    return Example(
        instruction="?",
        response=row.get("response", ""),
        domain="d",
        label=row.get("label", ""),
        choices=tuple(row.get("choices", ())),
        answer=row.get("answer", ""),
        facts=tuple(row.get("facts", ())),
        tests=row.get("tests", ""),
    )


def test_the_table_has_enough_of_every_kind_half_of_them_right():
    counts = Counter((row["kind"], row["right"]) for row in TABLE)
    assert {kind for kind, _ in counts} == set(KINDS)
    for kind in KINDS:
        right, wrong = counts[kind, True], counts[kind, False]
        assert right + wrong >= 60
        assert 0.4 < right / (right + wrong) < 0.6
    truths = [{key: value for key, value in row.items() if key not in ("kind", "right")} for row in TABLE]
    assert len({json.dumps(truth, sort_keys=True) for truth in truths}) == len(TABLE)


def test_false_alarms_and_misses_are_few_in_every_kind():
    wrong_verdicts = {True: [], False: []}
    for row in TABLE:
        if bool(lost(_example(row), row["text"], code_timeout=2)) is row["right"]:
            wrong_verdicts[row["right"]].append(row)
    counts = Counter((row["kind"], row["right"]) for row in TABLE)
    for kind in KINDS:
        alarms, misses = (
            sum(row["kind"] == kind for row in wrong_verdicts[right]) / counts[kind, right]
            for right in (True, False)
        )
        print(
            f"{kind:7} false alarms {alarms:.3f} of {counts[kind, True]}, misses {misses:.3f} of {counts[kind, False]}"
        )
        texts = [row["text"] for rows in wrong_verdicts.values() for row in rows if row["kind"] == kind]
        assert alarms <= MAX_FALSE_ALARMS, texts
        assert misses <= MAX_MISSES, texts


def test_the_blind_table_has_no_more_wrong_verdicts_than_when_it_was_scored_once():
    """7 false alarms in 150 (4.7 %, Wilson's interval 2.3 to 9.3) and 2 misses in 150 (1.3 %, 0.4 to 4.7)."""
    assert Counter(row["right"] for row in BLIND) == {True: 150, False: 150}
    wrong = Counter(
        row["right"]
        for row in BLIND
        if bool(lost(_example(row), row["text"], code_timeout=2)) is row["right"]
    )
    assert wrong[True] <= 7
    assert wrong[False] <= 2
