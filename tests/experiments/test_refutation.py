"""What would refute the method: verdicts by sign and p, seeds that would decide, and runs set by hand."""

import math
from statistics import mean, stdev

import pytest
from scipy import stats

from fedsdr.experiments.grid_runs import GridRun
from fedsdr.experiments.refutation import (
    effect_size,
    overall,
    refutation,
    seeds_to_decide,
    verdict_of_metric,
)
from fedsdr.stats import Difference

DOMAINS = ("finance", "math")
NUM = 40
"""Answers of a domain."""


def difference(value: float) -> Difference:
    return Difference(value, value - 0.1, value + 0.1, 0.01)


def test_fewer_unsupported_answers_and_more_right_ones_speak_for_the_method():
    assert verdict_of_metric("unsupported_rate", difference(-0.2), 0.01) == "supported"
    assert verdict_of_metric("unsupported_rate", difference(0.2), 0.01) == "refuted"
    assert verdict_of_metric("score", difference(0.2), 0.01) == "supported"
    assert verdict_of_metric("score", difference(-0.2), 0.01) == "refuted"


def test_what_is_not_significant_after_correction_is_undecided():
    assert verdict_of_metric("score", difference(0.2), 0.05) == "undecided"
    assert verdict_of_metric("score", None, None) == "undecided"


def test_one_refuted_metric_refutes_whatever_the_others_say():
    assert overall(["supported", "refuted"]) == "refuted"
    assert overall(["supported", "undecided"]) == "supported"
    assert overall(["undecided", "undecided"]) == "undecided"


def test_the_seeds_that_would_decide_are_the_fewest_whose_interval_excludes_zero():
    gains = [0.02, -0.03, 0.05, 0.01, 0.04]
    size = mean(gains) / stdev(gains)
    assert effect_size(gains) == pytest.approx(size)
    num = seeds_to_decide(gains)

    def half_interval(n: int) -> float:
        return stats.t.ppf(0.975, n - 1) / math.sqrt(n)

    assert half_interval(num) < size <= half_interval(num - 1)


def test_no_number_of_seeds_decides_what_differs_by_nothing():
    assert seeds_to_decide([0.1, -0.1]) is None
    assert seeds_to_decide([0.1, 0.1]) is None  # no spread to judge by


def run(
    arm: str, seed: int, unsupported: float, right: float, method: str = "", rest: str = "same"
) -> GridRun:
    """A run whose global model has these shares in both domains; which prompts it fails turns with the seed."""

    def verdicts(share: float) -> list[bool]:
        marks = [place < round(share * NUM) for place in range(NUM)]
        return marks[seed:] + marks[:seed]

    answers = [
        {
            "domain": domain,
            "instruction": f"Question {place}?",
            "input": "",
            "output": "",
            "unsupported": bad,
            "right": good,
        }
        for domain in DOMAINS
        for place, (bad, good) in enumerate(zip(verdicts(unsupported), verdicts(right), strict=True))
    ]
    mean = {"score": right, "unsupported_rate": unsupported, "num_examples": NUM}
    final = {"global": {"mean": mean}}
    return GridRun(arm, seed, {}, final, [], {"global": answers}, method or arm, rest)


def grid(fedsdr: list[float], fedsd: list[float], rights: tuple[float, float] = (0.5, 0.5)) -> list[GridRun]:
    """Unsupported rates by seed."""
    return [run("fedsdr", seed, share, rights[0]) for seed, share in enumerate(fedsdr)] + [
        run("fedsd", seed, share, rights[1]) for seed, share in enumerate(fedsd)
    ]


@pytest.mark.parametrize(
    ("fedsdr", "fedsd", "verdict"),
    [
        ([0.9, 0.95, 0.9, 0.95], [0.1, 0.05, 0.1, 0.05], "refuted"),
        ([0.1, 0.05, 0.1, 0.05], [0.9, 0.95, 0.9, 0.95], "supported"),
        ([0.5, 0.4, 0.6, 0.5], [0.45, 0.55, 0.5, 0.5], "undecided"),
    ],
)
def test_the_verdict_follows_the_sign_where_seeds_and_examples_leave_no_doubt(fedsdr, fedsd, verdict: str):
    sheet, verdicts = refutation(grid(fedsdr, fedsd))
    assert [found["verdict"] for found in verdicts] == [verdict]
    row = next(r for r in sheet.records if r["metric"] == "unsupported_rate")
    assert row["difference"] == pytest.approx(sum(fedsdr) / 4 - sum(fedsd) / 4)
    assert row["verdict"] == verdict
    # Scores are equal, run by run: nothing to judge by.
    assert next(r for r in sheet.records if r["metric"] == "score")["verdict"] == "undecided"


def test_an_undecided_row_says_how_many_more_seeds_would_decide():
    _, (verdict,) = refutation(grid([0.6, 0.5, 0.65], [0.5, 0.55, 0.5]))
    assert verdict["verdict"] == "undecided"
    gains = [0.1, -0.05, 0.15]
    more = seeds_to_decide(gains) - 3
    assert f"{more} more seeds would decide it over seeds" in verdict["text"]


def test_one_seed_leaves_nothing_to_judge_by():
    _, (verdict,) = refutation(grid([0.9], [0.1]))
    assert verdict["verdict"] == "undecided"
    assert "one seed" in verdict["text"] and "1,000" not in verdict["text"]


def test_worse_in_one_metric_refutes_whatever_the_other_gained():
    fedsdr, fedsd = [0.1, 0.05, 0.1, 0.05], [0.9, 0.95, 0.9, 0.95]
    runs = [run("fedsdr", s, a, 0.1 + 0.05 * (s % 2)) for s, a in enumerate(fedsdr)]
    runs += [run("fedsd", s, a, 0.9 + 0.05 * (s % 2)) for s, a in enumerate(fedsd)]
    sheet, (verdict,) = refutation(runs)
    assert {r["metric"]: r["verdict"] for r in sheet.records} == {
        "unsupported_rate": "supported",
        "score": "refuted",
    }
    assert verdict["verdict"] == "refuted" and "significantly worse in neither" in verdict["claim"]


def test_arms_that_differ_in_more_than_the_method_are_not_compared():
    runs = [run("fedsdr", 0, 0.5, 0.5), run("fedsd", 0, 0.5, 0.5, rest="other")]
    sheet, verdicts = refutation(runs)
    assert not sheet.rows and not verdicts


def test_dual_raw_is_compared_too():
    runs = [run(arm, seed, 0.5, 0.5) for arm in ("fedsdr", "fedsd", "dual-raw", "fedit") for seed in (0, 1)]
    sheet, _ = refutation(runs)
    assert {(r["arm"], r["against"]) for r in sheet.records} == {("fedsdr", "fedsd"), ("fedsdr", "dual-raw")}
