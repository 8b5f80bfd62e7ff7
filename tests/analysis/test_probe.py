"""The probe's rule, and how it is judged: by hand where numbers are few."""

import math
import random

import pytest
from scipy import stats

from fedsdr.analysis.probe import FEATURES, PLAIN, advice, evaluate_rule, read_cases
from fedsdr.errors import UserError


def case(domain: str, outcome: float, **features: float | str | None) -> dict:
    return {"domain": domain, "outcomes": [outcome - 0.01, outcome, outcome + 0.01], **features}


def of(found: dict, feature: str) -> dict:
    return next(record for record in found["records"] if record["feature"] == feature)


@pytest.mark.parametrize(
    ("num_suited", "advised"), [(24, "undecided"), (12, "undecided"), (6, "raw"), (0, "raw")]
)
def test_the_advice_is_undecided_unless_the_interval_lies_below_one_half(num_suited: int, advised: str):
    """Wilson's intervals of 12 and 6 of 24 are [0.31, 0.69] and [0.12, 0.45]. No case supports "rewrite"."""
    assert advice(num_suited, 24) == advised


def test_auc_is_the_share_of_pairs_in_the_right_order_and_its_interval_the_jackknife_over_domains():
    cases = [
        case("a", 1, passed=0.9),
        case("a", -1, passed=0.5),
        case("b", 1, passed=0.6),
        case("b", -1, passed=0.6),
        case("c", 1, passed=0.4),
        case("c", -1, passed=0.1),
    ]
    record = of(evaluate_rule(cases), PLAIN)
    # Of nine pairs, 0.9 wins three, 0.6 wins two and ties one, 0.4 wins one.
    assert record["auc"] == pytest.approx(6.5 / 9)
    # Without a: 0.6 ties and wins, 0.4 wins one; without b: 0.9 wins two, 0.4 one; without c: 2, and 1.5.
    without = [2.5 / 4, 3 / 4, 3.5 / 4]
    mean = sum(without) / 3
    error = math.sqrt(2 / 3 * sum((value - mean) ** 2 for value in without))
    half = stats.t.ppf(0.975, 2) * error
    assert record["low"] == pytest.approx(max(0, 6.5 / 9 - half))
    assert record["high"] == pytest.approx(min(1, 6.5 / 9 + half))


def test_a_number_of_which_less_is_better_is_judged_so():
    cases = [case(d, s, passed=0.5, length_ratio=2 - s) for d in "abc" for s in (1, -1)]
    assert FEATURES["length_ratio"] == -1
    assert of(evaluate_rule(cases), "length_ratio")["auc"] == 1
    assert of(evaluate_rule(cases), PLAIN)["auc"] == 0.5


def test_a_held_out_domain_is_judged_by_the_threshold_of_the_others():
    """In a and b the best threshold is near 0.5; c's values lie above it, whether rewriting paid or not."""
    cases = [case(d, s, passed=0.5 + 0.1 * s) for d in "ab" for s in (1, -1)]
    cases += [case("c", 1, passed=0.9), case("c", -1, passed=0.8)]
    assert of(evaluate_rule(cases), PLAIN)["held_out"] == pytest.approx(5 / 6)


def test_the_plain_rule_is_taken_unless_another_number_is_better_for_certain():
    draw = random.Random(1)
    noise = [
        case(f"domain-{n % 8}", draw.choice([1, -1]), passed=draw.random(), suited=draw.random())
        for n in range(32)
    ]
    assert evaluate_rule(noise)["taken"] == PLAIN
    better = [one | {"suited": 0.5 + 0.4 * one["outcomes"][1]} for one in noise]
    found = evaluate_rule(better)
    assert found["taken"] == "suited" and of(found, "suited")["difference_low"] > 0
    few = evaluate_rule([one | {"passed": 0.5} for one in better[:24]])
    assert of(few, "suited")["difference_low"] > 0 and few["taken"] == PLAIN
    assert not [note for note in found["notes"] if "too few to validate a rule" in note]


def test_few_cases_validate_nothing_and_advice_is_counted_where_it_was_given():
    cases = [
        case("a", 1, passed=0.9, advice="undecided"),
        case("b", 1, passed=0.2, advice="raw"),
        case("c", -1, passed=0.1, advice="raw"),
        case("d", -1, passed=0.1, advice="raw"),
    ]
    found = evaluate_rule(cases)
    assert found["advised"] == {"num": 3, "right": pytest.approx(2 / 3)}
    assert "Fewer than 30 cases: too few to validate a rule." in found["notes"]


def test_a_number_that_no_case_has_is_left_out_and_missing_ones_are_not_counted():
    cases = [case(d, s, passed=0.5 + 0.1 * s, js_change=None) for d in "abc" for s in (1, -1)]
    cases[0]["gradient_change"], cases[1]["gradient_change"] = 0.1, 0.0
    found = evaluate_rule(cases)
    assert [record["feature"] for record in found["records"]] == [PLAIN, "gradient_change"]
    record = of(found, "gradient_change")
    assert (record["num"], record["auc"], record["low"]) == (2, 1, None)


def test_outcomes_of_one_kind_cannot_judge():
    with pytest.raises(UserError, match="rewriting helped in all of the 2 cases"):
        evaluate_rule([case("a", 1, passed=0.1), case("b", 1, passed=0.2)])
    # Wilson's upper end of 0 of 32 is z^2 / (32 + z^2) = 3.84 / 35.84.
    with pytest.raises(UserError, match=r"none of the 32 cases \(share that gained: 0.00 to 0.11"):
        evaluate_rule([case(f"d{n}", -1, passed=n / 32) for n in range(32)])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"outcomes": [0.1]}, "domain = None"),
        ({"domain": "a", "outcomes": []}, r"outcomes = \[\]; expected a list of numbers"),
        ({"domain": "a", "outcomes": [0.1], "suited": "most"}, "suited = 'most'; expected a number"),
    ],
)
def test_a_malformed_case_is_named_with_its_line(row: dict, message: str):
    with pytest.raises(UserError, match=f"cases.jsonl:2: {message}"):
        read_cases([("cases.jsonl:1", case("a", 1)), ("cases.jsonl:2", row)])
