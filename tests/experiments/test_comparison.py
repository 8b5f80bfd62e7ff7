"""Means, paired differences and corrections of a grid, worked out by hand or by another library."""

import pytest
from scipy import stats
from tests.report.conftest import prepare_event, train_event

from fedsdr.experiments.comparison import (
    Group,
    Trial,
    compare_runs,
    cost_comparison,
    domain_comparison,
    rate_choice,
    score_comparison,
    sign,
)
from fedsdr.experiments.grid_runs import GridRun
from fedsdr.experiments.page import did_they_help

AGAINST_FEDIT = Group([], "fedit", "fedit")
AGAINST_FEDIT_AND_FEDSDR = Group(["fedit", "fedsdr"], "fedit", "fedit")
AGAINST_ALL = Group(["fedit", "fedsd"], "fedit", "fedit")
SCORES = {"fedit": [0.50, 0.40, 0.60], "fedsd": [0.55, 0.50, 0.66], "fedsdr": [0.50, 0.43, 0.59]}


def table(score: float, words: float = 10.0) -> dict[str, dict[str, float]]:
    row = {"score": score, "loss": 2.0, "unsupported_rate": 0.1, "words": words}
    return {"math": row, "mean": row}


def runs() -> list[GridRun]:
    return [
        GridRun(arm, seed, {"global": table(0.2)}, {"global": table(score)}, [], {})
        for arm, scores in SCORES.items()
        for seed, score in enumerate(scores)
    ]


def test_arms_are_compared_with_the_baseline_seed_by_seed_and_corrected_together():
    records = {record["arm"]: record for record in score_comparison(runs(), AGAINST_FEDIT).records}
    assert records["fedit"]["mean"] == pytest.approx(0.5)
    assert records["fedit"]["sd"] == pytest.approx(0.1)
    assert records["fedit"]["difference"] is None
    raw = {arm: stats.ttest_rel(SCORES[arm], SCORES["fedit"]).pvalue for arm in ("fedsd", "fedsdr")}
    assert records["fedsd"]["p_holm"] == pytest.approx(min(1, 2 * raw["fedsd"]))
    assert records["fedsdr"]["p_holm"] == pytest.approx(raw["fedsdr"])
    assert records["base"]["sd"] == 0
    assert records["base"]["num_seeds"] == 3


def test_an_arm_without_a_test_weakens_the_others():
    """Each seed of the fourth arm is 0.1 above fedit's: without spread there is no test."""
    fourth = [
        GridRun("mixed", seed, {"global": table(0.2)}, {"global": table(score + 0.1)}, [], {})
        for seed, score in enumerate(SCORES["fedit"])
    ]
    records = {r["arm"]: r for r in score_comparison([*runs(), *fourth], AGAINST_FEDIT).records}
    raw = stats.ttest_rel(SCORES["fedsd"], SCORES["fedit"]).pvalue
    assert records["mixed"]["p_holm"] is None
    assert records["fedsd"]["p_holm"] == pytest.approx(min(1, 3 * raw))


@pytest.mark.parametrize(("steps", "equal", "num"), [(2, "", 1), (1, "", 0), (2, "equal steps", 0)])
def test_arms_that_train_for_unlike_numbers_of_steps_are_told(steps: int, equal: str, num: int):
    """Two stages of eight steps each beside one, as with client.budget = "per_stage"."""
    some = [
        GridRun(arm, 0, {"global": table(0.2)}, {"global": table(0.5)}, events, {})
        for arm, events in (
            ("fedit", [train_event(1, "math", ("shared",))]),
            ("fedsdr", [train_event(1, "math", ("private", "shared")[:steps])]),
        )
    ]
    notices = compare_runs(some, {equal: AGAINST_FEDIT_AND_FEDSDR}, []).notices
    assert len(notices) == num
    if num:
        assert "(fedit 8, fedsdr 16)" in notices[0].text and "per_round" in notices[0].text


def test_seeds_that_the_baseline_lacks_are_told_beside_the_number_of_seeds():
    """Fedit failed with seed 2, so fedsd is compared by seeds 0 and 1 only: by 0.05 and 0.10."""
    some = [run for run in runs() if (run.arm, run.seed) != ("fedit", 2)]
    sheet = score_comparison(some, AGAINST_FEDIT)
    seeds = {row[0]: row[2] for row in sheet.rows}
    assert (seeds["fedit"], seeds["fedsd"]) == ("2", "3 (2 in common)")
    record = next(r for r in sheet.records if r["arm"] == "fedsd")
    assert record["difference"] == pytest.approx(0.075)
    assert record["mean"] == pytest.approx(sum(SCORES["fedsd"]) / 3)
    assert "Seeds in common" in sheet.note
    assert "in common" not in score_comparison(runs(), AGAINST_FEDIT).note


def test_arms_are_compared_with_the_base_model_and_better_and_worse_are_marked():
    """Scores are 0.3 above the base's on average; losses are equal, so nothing is tested and nothing marked."""
    sheet = score_comparison(runs(), AGAINST_FEDIT)
    records = {record["arm"]: record for record in sheet.records}
    assert records["fedit"]["difference_base"] == pytest.approx(0.5 - 0.2)
    assert records["base"]["difference_base"] is None
    by_seed = score_comparison(_with_losses([1.2, 1.1, 1.0], [2.2, 2.1, 1.9]), AGAINST_FEDIT, "loss")
    lower, higher = (next(r for r in by_seed.records if r["arm"] == arm) for arm in ("fedit", "fedsd"))
    raw = [stats.ttest_rel(values, [2.0] * 3).pvalue for values in ([1.2, 1.1, 1.0], [2.2, 2.1, 1.9])]
    assert lower["p_holm_base"] == pytest.approx(2 * min(raw))
    assert sign(lower, "loss", "_base") == "✓"
    assert sign(higher, "loss", "_base") == "?"
    assert sign(higher, "loss") == "✗"  # against fedit
    assert by_seed.rows[1][5:7] == ("✓ -0.900", "-")
    assert by_seed.rows[2][5:7] == ("? +0.067", "✗ +0.967")
    made = compare_runs(_with_losses([1.2, 1.1, 1.0], [2.2, 2.1, 1.9]), {"": AGAINST_ALL}, [])
    assert (
        did_they_help(made)[-1] == "Loss, true responses, global models against fedit: worse: fedsd +0.967."
    )


def _with_losses(*losses: list[float]) -> list[GridRun]:
    return [
        GridRun(arm, seed, {"global": table(0.2)}, {"global": {"mean": {"loss": loss, "words": 1.0}}}, [], {})
        for arm, found in zip(("fedit", "fedsd"), losses, strict=True)
        for seed, loss in enumerate(found)
    ]


def test_a_personalised_model_is_never_compared_with_a_global_one():
    """Went wrong elsewhere: personalised scores were listed next to baselines that aim at one global model."""
    dual = [
        GridRun(
            "fedsdr",
            seed,
            {"global": table(0.2)},
            {"global": table(0.5), "personalised": table(0.7 + seed / 10)},
            [],
            {},
        )
        for seed in range(3)
    ]
    sheet = score_comparison([*runs()[:3], *dual], AGAINST_FEDIT)
    (record,) = [record for record in sheet.records if record["model"] == "personalised"]
    assert record["mean"] == pytest.approx(0.8)
    assert record["difference"] is None


def test_a_run_without_a_mean_is_left_out_and_the_number_of_seeds_says_so():
    some = runs()
    broken = GridRun("fedsd", 2, some[0].base, {"global": {"math": table(0.9)["math"]}}, [], {})
    records = {r["arm"]: r for r in score_comparison([*some[:5], broken, *some[6:]], AGAINST_FEDIT).records}
    assert records["fedsd"]["num_seeds"] == 2
    assert records["fedsd"]["difference"] == pytest.approx((0.05 + 0.10) / 2)  # seeds 0 and 1 of both


def test_a_difference_and_its_test_are_of_the_same_seeds():
    """The third seed's personalised model has answers, but no mean: one of its clients was never trained."""

    def run(arm: str, seed: int, score: float, share: float, has_mean: bool = True) -> GridRun:
        answers = [
            {"domain": "math", "instruction": f"{n}", "input": "", "output": "", "right": n < 10 * share}
            for n in range(10)
        ]
        own = table(score) if has_mean else {"math": table(score)["math"]}
        return GridRun(arm, seed, {}, {"personalised": own}, [], {"personalised": answers})

    some = [run("fedit", seed, 0.5, 0.5) for seed in range(3)]
    some += [run("fedsdr", 0, 0.4, 0.4), run("fedsdr", 1, 0.4, 0.4), run("fedsdr", 2, 1.0, 1.0, False)]
    records = {r["arm"]: r for r in score_comparison(some, AGAINST_FEDIT).records}
    assert records["fedsdr"]["difference"] == pytest.approx(-0.1)
    middle = (records["fedsdr"]["low_examples"] + records["fedsdr"]["high_examples"]) / 2
    assert middle == pytest.approx(-0.1)


def test_losses_on_other_rewritings_are_not_compared():
    """The base itself has a loss of 1.30 on one arm's rewritings, and of 1.25 on the other's."""

    def run(arm: str, seed: int, base: float, loss: float) -> GridRun:
        return GridRun(
            arm, seed, {"global": {"mean": {"loss_distilled": base}}},
            {"global": {"mean": {"loss_distilled": loss}}}, [], {},
        )  # fmt: skip

    def difference(base: float) -> float | None:
        some = [run("fedit", seed, 1.30, 1.2 + seed / 50) for seed in range(3)]
        some += [run("fedsd", seed, base, 1.1 + seed / 50) for seed in range(3)]
        found = score_comparison(some, AGAINST_FEDIT, "loss_distilled").records
        return next(r for r in found if r["arm"] == "fedsd")["difference"]

    assert difference(1.25) is None
    assert difference(1.3000004) == pytest.approx(-0.1)  # the same texts in other batches


def test_a_loss_on_rewritings_that_all_fell_back_is_in_no_table():
    """All of law's were the true responses, so their loss, and a mean with it, is none of rewritings."""

    def scores(law: float, math: float) -> dict[str, dict[str, dict[str, float]]]:
        rows = {
            "law": {"loss": law, "loss_distilled": law},
            "math": {"loss": math, "loss_distilled": math - 0.5},
        }
        mean = {"loss": (law + math) / 2, "loss_distilled": (law + math - 0.5) / 2}
        return {"global": {name: row | {"words": 1.0} for name, row in (rows | {"mean": mean}).items()}}

    some = [
        GridRun(arm, seed, scores(2.0, 3.0), scores(1.5 + seed, 2.5), [], {})
        for arm in ("fedit", "fedsd")
        for seed in range(2)
    ]
    made = compare_runs(some, {"": AGAINST_ALL}, []).sheets
    assert "loss" in made and "loss_distilled" not in made
    found = {r["domain"]: r["loss_distilled"] for r in made["domains"].records if r["arm"] == "fedsd"}
    assert found == {"law": None, "math": 2.0, "mean": None}
    assert "No loss on rewritings, since all fell back: law;" in made["domains"].note


def test_domains_show_the_mean_and_the_spread_over_seeds():
    sheet = domain_comparison(runs())
    rows = {(row[0], row[2]): row for row in sheet.rows}
    assert rows["fedit", "math"][3] == "0.500 (0.100)"
    assert sheet.heads[3:] == ("exact score", "loss, true responses", "unsupported", "words")  # what there is


def test_what_one_label_for_everything_scores_stands_beside_the_score():
    """Two arms with the same score, 0.6, the share of the majority: one always gives it, one distinguishes
    the labels.
    """
    some = [
        GridRun(arm, 0, {}, {"global": {"cola": row, "mean": row}}, [], {})
        for arm, balanced in (("fedit", 0.5), ("fedsd", 0.6))
        for row in [{"score": 0.6, "words": 1.0, "balanced_accuracy": balanced, "majority_share": 0.6}]
    ]
    made = compare_runs(some, {"": Group(["fedit", "fedsd"], "fedit", "fedit")}, []).sheets
    assert [(r["arm"], r["mean"]) for r in made["balanced_accuracy"].records] == [
        ("fedit", 0.5),
        ("fedsd", 0.6),
    ]
    assert {r["majority_share"] for r in made["domains"].records} == {0.6}
    assert "majority label" in made["domains"].heads
    assert "rouge_l" not in made and "majority_share" not in made


def test_costs_are_sums_over_clients_and_means_over_seeds():
    events = [prepare_event("math"), train_event(1, "math", ("private", "shared")),
              train_event(1, "code", ("private", "shared"))]  # fmt: skip
    events.append({"event": "round", "round": 1, "seconds": 20.0, "num_bytes_down": 64_000})
    events.append({"event": "end", "round": 1, "seconds": 70.4, "peak_memory": 2_500_000_000})
    some = [GridRun("fedsdr", seed, {}, {}, events, {}) for seed in range(2)]
    some.append(
        GridRun("fedsdr", 2, {}, {}, [*events[:-1], {"event": "end", "round": 1}], {})
    )  # gone on with
    (row,) = cost_comparison(some).rows
    # Two clients of 16 steps, 2,000 tokens, 64 kB each way, 12.5 s; 40 s of rewriting.
    assert row == ("fedsdr", "32", "4,000", "128.0 kB", "128.0 kB", "40", "25", "0", "70", "2.5 GB")


def test_personalised_models_may_have_a_baseline_of_their_own():
    def run(arm: str, seed: int, score: float) -> GridRun:
        models = {"global": table(0.5 + seed / 10), "personalised": table(score + seed / 10)}
        return GridRun(arm, seed, {"global": table(0.2)}, models, [], {})

    some = [run(arm, seed, score) for arm, score in (("a", 0.1), ("b", 0.3)) for seed in range(3)]
    sheet = score_comparison([*runs()[:3], *some], Group([], "fedit", "a"))
    found = {(r["arm"], r["model"]): r["difference"] for r in sheet.records}
    assert found["b", "personalised"] == pytest.approx(0.2)
    assert found["a", "personalised"] is None
    assert found["b", "global"] == pytest.approx(0.6 - 0.5)  # fedit's seeds have the mean 0.5
    assert "against fedit, personalised against a" in sheet.caption


def test_a_base_model_that_differs_between_arms_is_no_row_of_all():
    other = [
        GridRun("fedsd", seed, {"global": table(0.3)}, {"global": table(0.5)}, [], {}) for seed in range(2)
    ]
    rows = score_comparison([*runs()[:3], *other], AGAINST_FEDIT).records
    assert "base" not in {row["arm"] for row in rows}


def test_answers_are_paired_by_prompt_and_seed_whatever_their_order():
    """fedsd is right once more under each seed: in mathematics on one of two prompts, in code on none."""
    prompts = [("math", "p"), ("math", "q"), ("code", "p"), ("code", "q")]

    def run(arm: str, seed: int, right: list[bool], turned: bool) -> GridRun:
        records = [
            {"domain": domain, "instruction": text, "input": "", "output": "", "right": is_right}
            for (domain, text), is_right in zip(prompts, right, strict=True)
        ]
        answers = {"global": records[::-1] if turned else records}
        return GridRun(arm, seed, {"global": table(0.2)}, {"global": table(0.5)}, [], answers)

    some = [
        run("fedit", 0, [True, False, False, False], False),
        run("fedit", 1, [False, False, False, True], False),
        run("fedsd", 0, [True, True, False, False], True),
        run("fedsd", 1, [False, True, False, True], True),
    ]
    (record,) = [r for r in score_comparison(some, AGAINST_FEDIT).records if r["arm"] == "fedsd"]
    assert (record["low_examples"] + record["high_examples"]) / 2 == pytest.approx((1 / 2 + 0) / 2)


def test_a_grid_that_is_still_growing_shows_what_it_has():
    trials = [
        Trial("fedit", 1e-3, 2.0, False),
        Trial("fedit", 2e-3, 1.5, True),
        Trial("fedsd", 1e-3, None, False),
    ]
    assert rate_choice(trials).rows == (
        ("fedit", "2.000", "1.500", "0.002", "at the end of the list"),
        ("fedsd", "diverged", "-", "-", ""),
    )
    found = compare_runs(runs(), {"": Group(["fedit", "fedsd"], "fedit", "fedit")}, trials).sheets
    assert {row[0] for row in found["score"].rows} == {"base", "fedit", "fedsd"}
    assert found["costs"].rows[0][-2:] == ("-", "-")  # no run has said how it ended
