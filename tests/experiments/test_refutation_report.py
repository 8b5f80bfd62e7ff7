"""The test that could refute the method, on cells whose differences are set by hand."""

import pytest

from fedsdr.experiments.grid_runs import Cell
from fedsdr.experiments.refutation import seeds_to_decide
from fedsdr.experiments.refutation_report import refutation

DOMAINS = ("finance", "math")
NUM = 40
"""Answers of a domain."""


def cell(arm: str, seed: int, unsupported: float, right: float, method: str = "", rest: str = "same") -> Cell:
    """A cell whose global model has these shares in both domains; which prompts it fails turns with the seed."""

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
    return Cell(arm, seed, {}, final, [], {"global": answers}, method or arm, rest)


def grid(fedsdr: list[float], fedsd: list[float], rights: tuple[float, float] = (0.5, 0.5)) -> list[Cell]:
    """Unsupported rates by seed."""
    return [cell("fedsdr", seed, share, rights[0]) for seed, share in enumerate(fedsdr)] + [
        cell("fedsd", seed, share, rights[1]) for seed, share in enumerate(fedsd)
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
    # Scores are equal, cell by cell: nothing to judge by.
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
    cells = [cell("fedsdr", s, a, 0.1 + 0.05 * (s % 2)) for s, a in enumerate(fedsdr)]
    cells += [cell("fedsd", s, a, 0.9 + 0.05 * (s % 2)) for s, a in enumerate(fedsd)]
    sheet, (verdict,) = refutation(cells)
    assert {r["metric"]: r["verdict"] for r in sheet.records} == {
        "unsupported_rate": "supported",
        "score": "refuted",
    }
    assert verdict["verdict"] == "refuted" and "worse in neither" in verdict["claim"]


def test_arms_that_differ_in_more_than_the_method_are_not_compared():
    cells = [cell("fedsdr", 0, 0.5, 0.5), cell("fedsd", 0, 0.5, 0.5, rest="other")]
    sheet, verdicts = refutation(cells)
    assert not sheet.rows and not verdicts


def test_dual_raw_is_compared_too():
    cells = [cell(arm, seed, 0.5, 0.5) for arm in ("fedsdr", "fedsd", "dual-raw", "fedit") for seed in (0, 1)]
    sheet, _ = refutation(cells)
    assert {(r["arm"], r["against"]) for r in sheet.records} == {("fedsdr", "fedsd"), ("fedsdr", "dual-raw")}
