"""The rewrite paradox by exact checks and by a checker of known verdicts, counted by hand."""

import numpy as np
import pytest

from fedsdr.analysis.paradox import (
    PARAPHRASE,
    REWRITING,
    TRUE,
    Verdicts,
    check,
    holds,
    paradox_records,
    style_differences,
    worst,
)
from fedsdr.data.examples import Example
from fedsdr.experiments.pairs import PARAPHRASES, read_pairs
from fedsdr.stats import difference_interval, wilson

LABELLED = Example("Label?", "POSITIVE", "finance", label="POSITIVE", choices=("POSITIVE", "NEGATIVE"))
SUM = Example("2 plus 3?", "2 plus 3 is 5. The answer is 5.", "math", answer="5")
OPEN = Example("Why?", "Because it is so.", "general", context="Here.", system="Be brief.")
PAIRS = [
    (SUM, "The answer is 5."),
    (LABELLED, "Sure, it is NEGATIVE."),
    (OPEN, "so it is so it is 7 times"),
    (LABELLED, "POSITIVE"),
]


class ByWord:
    """Says yes unless the hypothesis holds "7", and nothing where it holds "NEGATIVE"."""

    name = "by word"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def entails(self, pairs):
        self.asked += pairs
        return [None if "NEGATIVE" in text else "7" not in text for _, text in pairs]


def found(records, of=REWRITING):
    return {(r["domain"], r["kind"]): r for r in records if r["of"] == of}


def test_hand_counted_pairs():
    """finance: one of two loses its label and names another. math: nothing. general: 7 stands nowhere; no truth.

    Words: 4 + 1 of 1 + 1, 4 of 9, 8 of 4; one filler in 4 words; one of six 3-grams repeats (see
    tests/distill/test_paradox.py).
    """
    records = paradox_records(PAIRS, REWRITING, check(PAIRS))
    values = {key: (record["value"], record["num"]) for key, record in found(records).items()}
    assert values["finance", "omission"] == values["finance", "unsupported"] == (1 / 2, 2)
    assert values["math", "omission"] == values["math", "unsupported"] == (0, 1)
    assert ("general", "omission") not in values
    assert values["general", "unsupported"] == (1, 1)
    assert values["all", "omission"] == (1 / 3, 3)
    assert values["all", "unsupported"] == (2 / 4, 4)
    assert values["all", "length_ratio"] == pytest.approx((17 / 15, 4))
    assert values["all", "words"] == (17 / 4, 4)
    assert values["all", "filler_rate"] == (25 / 4, 4)
    assert values["all", "redundancy"] == pytest.approx((1 / 6 / 4, 4))
    whole = found(records)["all", "unsupported"]
    assert (whole["low"], whole["high"]) == wilson(1 / 2, 4)
    assert {record["num_unreadable"] for record in records} == {0}
    assert found(records)["math", "words"]["low"] is None  # one example has no spread


def test_a_checker_is_asked_both_ways_and_what_it_cannot_tell_counts_apart():
    """Omission: does y~ entail y? Unsupported: do c, x and y together entail y~?"""
    checker = ByWord()
    verdicts = check(PAIRS, checker)
    assert checker.asked[2] == ("so it is so it is 7 times", "Because it is so.")
    assert checker.asked[6] == ("Because it is so.\nWhy?\nHere.\nBe brief.", "so it is so it is 7 times")
    records = paradox_records(PAIRS, "base answer", verdicts)
    assert {(r["checker"], r["of"], r["kind"]) for r in records} == {
        ("by word", "base answer", "omission"),
        ("by word", "base answer", "unsupported"),
    }
    whole = found(records, "base answer")["all", "unsupported"]
    assert (whole["value"], whole["num"], whole["num_unreadable"]) == (1 / 3, 3, 1)
    finance = [(LABELLED, "NEGATIVE")]
    (_, none) = paradox_records(finance, REWRITING, check(finance, checker))
    assert (none["value"], none["low"], none["num"], none["num_unreadable"]) == (None, None, 0, 1)


def test_what_an_earlier_turn_says_is_given_to_a_checker():
    """Went wrong once: a rewriting that takes up an earlier turn counted as unsupported."""
    checker = ByWord()
    later = Example(
        "And of Italy?", "Rome.", "general", history=(("Hello.", "Hi."), ("Capital?", "Of France: Paris."))
    )
    check([(later, "Rome, as Paris is of France.")], checker)
    premise, _ = checker.asked[1]
    # The latest exchange first: a long premise is cut at its end.
    assert premise == "Rome.\nAnd of Italy?\nCapital?\nOf France: Paris.\nHello.\nHi."


def test_true_responses_have_no_exact_false_alarm_and_paraphrases_do_not_all_pass():
    """What the exact checks get wrong on texts that are right: measured, not hidden."""
    pairs = read_pairs(PARAPHRASES)
    true = [(example, example.response) for example, _ in pairs]
    alarms = found(paradox_records(true, TRUE, check(true)), TRUE)
    assert alarms["all", "omission"]["value"] == alarms["all", "unsupported"]["value"] == 0
    assert alarms["all", "length_ratio"]["value"] == 1
    measured = found(paradox_records(pairs, PARAPHRASE, check(pairs)), PARAPHRASE)
    assert 0 < measured["all", "omission"]["value"] < 1 / 2
    assert measured["all", "unsupported"]["value"] <= 1 / 10


def texts(growth: int, num: int = 40) -> list[tuple[Example, str]]:
    """Responses of 10 to 19 different words, and texts of that many more."""
    words = [f"word{chr(97 + n)}" for n in range(26)]
    return [
        (Example("Why?", " ".join(words[: 10 + n % 10]), "general"), " ".join(words[: 10 + n % 10 + growth]))
        for n in range(num)
    ]


def test_differences_are_paired():
    """Every text has exactly 5 words more: the spread of lengths does not blur that."""
    records = style_differences(texts(5), REWRITING)
    gain = found(records, "rewriting minus true response")["general", "length_ratio"]
    assert gain["value"] == pytest.approx(5 / np.mean(range(10, 20)))
    # The ratio's spread comes from the mean length alone: 1.96 x 0.345 x 2.87 / 14.5 / sqrt(40) = 0.021.
    assert gain["high"] - gain["value"] == pytest.approx(0.021, rel=0.2)
    same = found(style_differences(texts(0), REWRITING), "rewriting minus true response")
    assert {(record["value"], record["low"], record["high"]) for record in same.values()} == {(0, 0, 0)}


def verdicts(num: int, num_unsupported: int) -> Verdicts:
    said = [place < num_unsupported for place in range(num)]
    return Verdicts("a checker", [False] * num, said, [()] * num)


@pytest.mark.parametrize(("num_false", "expected"), [(4, True), (16, False)])
def test_more_unsupported_than_false_alarms_is_what_counts(num_false, expected):
    """Half of 40 rewritings against 4 or 16 of 40 paraphrases."""
    pairs = texts(0)
    records = paradox_records(pairs, REWRITING, verdicts(40, 20))
    records += paradox_records(pairs, PARAPHRASE, verdicts(40, num_false))
    (condition,) = holds(records)
    assert condition["kind"] == "unsupported" and condition["checker"] == "a checker"
    assert condition["difference"] == pytest.approx(20 / 40 - num_false / 40)
    assert (condition["low"], condition["high"]) == difference_interval(1 / 2, 40, num_false / 40, 40)
    assert condition["holds"] is expected


@pytest.mark.parametrize(("growth", "expected"), [(5, True), (0, False)])
def test_longer_texts_meet_the_condition_on_length_alone(growth, expected):
    pairs = texts(growth)
    records = paradox_records(pairs, REWRITING, check(pairs)) + style_differences(pairs, REWRITING)
    conditions = {condition["kind"]: condition for condition in holds(records)}
    assert {kind: condition["holds"] for kind, condition in conditions.items()} == {
        "length_ratio": expected, "filler_rate": False, "redundancy": False,
    }  # fmt: skip
    assert conditions["length_ratio"]["other"] == 1


def test_the_worst_come_first_in_every_domain_and_what_has_nothing_against_it_is_left_out():
    long = (SUM, f"The answer is 6. {'So it is. ' * 200}")
    pairs = [*PAIRS, long, (SUM, "It is 6.")]
    records = worst(pairs, REWRITING, check(pairs), 10)
    assert [(record["domain"], record["why"]) for record in records] == [
        ("finance", "lost label, unsupported, at least twice as long"),
        ("general", "unsupported, at least twice as long"),
        ("math", "lost answer, unsupported, at least twice as long"),
        ("math", "lost answer, unsupported"),
    ]
    assert records[2]["response"] == SUM.response
    assert records[2]["text"].startswith("The answer is 6.") and len(records[2]["text"]) <= 604
    assert (records[1]["instruction"], records[1]["input"]) == ("Why?", "Here.")
    assert worst(pairs, REWRITING, check(pairs), 2) == records[:2]
    (by_checker,) = worst([(OPEN, "It is 7.")], REWRITING, check([(OPEN, "It is 7.")], ByWord()), 1)
    assert (by_checker["checker"], by_checker["why"]) == ("by word", "unsupported")
