"""From replies to a table: pooled over clients by what was counted, then a plain mean over domains."""

import pytest

from fedsdr.evaluate.scores import pool, table_of_round


def part(**metrics: float) -> dict[str, float]:
    rates = dict.fromkeys(("unsupported_rate", "words", "filler_rate", "redundancy", "cut_off_rate"), 0.0)
    return rates | {"num_scored": 0} | metrics


def test_clients_are_pooled_by_what_each_number_was_counted_over():
    """Two clients of one domain. Went wrong elsewhere: weighted and plain means over clients mixed up.

    score: (1.0 * 1 + 0.5 * 4) / 5 = 0.6 over scored answers; words: (10 * 2 + 20 * 8) / 10 = 18 over all
    answers; loss: (2.0 * 30 + 4.0 * 10) / 40 = 2.5 over tokens.
    """
    pooled = pool(
        [
            part(num_examples=2, num_scored=1, score=1.0, words=10.0, loss=2.0, loss_tokens=30),
            part(num_examples=8, num_scored=4, score=0.5, words=20.0, loss=4.0, loss_tokens=10),
        ]
    )
    assert pooled["score"] == pytest.approx(0.6)
    assert pooled["words"] == pytest.approx(18)
    assert pooled["loss"] == pytest.approx(2.5)
    assert (pooled["num_examples"], pooled["num_scored"], pooled["loss_tokens"]) == (10, 5, 40)


def test_a_client_without_ground_truth_does_not_pull_the_score_down():
    pooled = pool([part(num_examples=5), part(num_examples=5, num_scored=2, score=1.0)])
    assert pooled["score"] == 1.0
    assert pooled["num_scored"] == 2
    assert pooled["num_examples"] == 10
    assert "score" not in pool([part(num_examples=5)])
    assert pool([part(num_examples=5)])["num_scored"] == 0


def event(client: str, **metrics: float) -> dict:
    """An evaluate event; keys as finance__score__global."""
    named = {}
    for key, value in metrics.items():
        domain, name, model = key.split("__")
        named[f"eval/{domain}/{name}@{model}"] = value
    return {"event": "evaluate", "round": 3, "client": client, "seconds": 1.0} | named


def test_the_mean_is_plain_over_domains_so_that_a_large_one_does_not_hide_a_small_one():
    """finance 1.0 over 90 answers, math 0.0 over 10: 0.5, not 0.9."""
    table = table_of_round(
        [
            event("a", finance__score__global=1.0, finance__num_scored__global=90, finance__num_examples__global=90,
                  finance__words__global=2.0),
            event("b", math__score__global=0.0, math__num_scored__global=10, math__num_examples__global=10,
                  math__words__global=4.0),
        ],
        num_test=100,
    )  # fmt: skip
    assert list(table) == ["global"]
    assert list(table["global"]) == ["finance", "math", "mean"]
    assert table["global"]["mean"]["score"] == pytest.approx(0.5)
    assert table["global"]["mean"]["words"] == pytest.approx(3)
    assert table["global"]["mean"]["num_examples"] == 100


def test_each_number_stays_with_the_model_that_it_was_measured_of():
    """Went wrong elsewhere: nobody could say whether the global or the clients' own models were scored."""
    table = table_of_round(
        [
            event("a", math__words__global=1.0, math__num_examples__global=2, math__words__personalised=3.0,
                  math__num_examples__personalised=2),
            event("b", math__words__global=2.0, math__num_examples__global=2, math__words__personalised=7.0,
                  math__num_examples__personalised=2),
        ],
        num_test=4,
    )  # fmt: skip
    assert table["global"]["math"]["words"] == 1.5
    assert table["personalised"]["math"]["words"] == 5


def test_a_domain_without_score_is_left_out_of_the_mean_score():
    table = table_of_round(
        [
            event("a", math__score__global=0.25, math__num_scored__global=4, math__num_examples__global=4,
                  math__words__global=1.0),
            event("b", general__num_scored__global=0, general__num_examples__global=6, general__words__global=1.0),
        ],
        num_test=10,
    )  # fmt: skip
    assert table["global"]["mean"]["score"] == 0.25
    assert table["global"]["mean"]["num_scored"] == 4
    assert "score" not in table["global"]["general"]


def answered(domain: str, *models: str, right: float) -> dict[str, float]:
    """An event of a client with ten test examples of one domain."""
    names = {"score": right, "num_scored": 10, "num_examples": 10, "words": 1.0}
    return {f"eval/{domain}/{name}@{model}": value for model in models for name, value in names.items()}


def test_a_model_that_was_not_scored_on_everything_has_no_mean_to_compare():
    """Went wrong once: clients that were never drawn have no personalised model; the means stood side by side."""
    both = answered("math", "global", "personalised", right=0.9)
    for other in ("code", "math"):  # of another domain, or the same one
        table = table_of_round([both, answered(other, "global", right=0.1)], num_test=20)
        assert table["global"]["mean"]["score"] == pytest.approx(0.5)
        assert set(table["personalised"]) == {"math"}


def test_a_dropped_reply_leaves_no_mean_that_looks_better():
    """Without math's wrong answers the mean would rise from 0.5 to 0.9."""
    table = table_of_round([answered("code", "global", right=0.9)], num_test=20)
    assert set(table["global"]) == {"code"}
