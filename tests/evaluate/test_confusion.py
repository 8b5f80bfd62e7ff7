"""Scores that one answer for everything cannot raise: against scikit-learn and by hand, pooled from counts."""

import random

import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, matthews_corrcoef

from fedsdr.data.examples import Example
from fedsdr.evaluate.confusion import count_labels, label_scores, sum_labels
from fedsdr.evaluate.scores import pool, table_of_round
from fedsdr.evaluate.tasks import score_answer
from fedsdr.metrics import ALWAYS_SCORED
from fedsdr.model.generation import Answer

CHOICES = ("neutral", "negative", "positive")  # sorted: negative 0, neutral 1, positive 2


def counted(pairs: list[tuple[str, str]], choices: tuple[str, ...] = CHOICES) -> dict[str, float]:
    """Counts over (true label, answer); the likeliest choice is always the first one."""
    examples = [Example("Label?", label, "finance", label=label, choices=choices) for label, _ in pairs]
    records = [
        score_answer(example, Answer(text, True, 1), 5, choices[0])
        for example, (_, text) in zip(examples, pairs, strict=True)
    ]
    return dict(count_labels(examples, records))


def test_a_client_whose_rows_have_other_choices_leaves_the_scores_ungiven():
    """Its 90 rows are scored, but not counted; the other client's 10 alone would give perfect scores."""
    pairs = [("positive", "Positive.")] * 9 + [("negative", "negative")]
    good = {**counted(pairs), "num_chosen": 10, "num_examples": 10}
    uncounted = {"num_chosen": 90, "num_examples": 90}
    assert label_scores(sum_labels([good, good]))["balanced_accuracy"] == 1
    assert sum_labels([good, uncounted]) == {}
    assert (
        sum_labels([good, {"num_examples": 5}])["label_set"] == good["label_set"]
    )  # a client without labels


def test_labels_are_counted_by_their_place_among_the_sorted_choices_and_no_label_apart():
    counts = counted([("positive", "Positive."), ("negative", "positive"), ("negative", "I like cats.")])
    label_set = counts.pop("label_set")
    assert 0 <= label_set < 2**16
    assert counts == {
        "num_answer-2-2": 1,
        "num_answer-0-2": 1,
        "num_answer-0-none": 1,
        "num_choice-2-1": 1,
        "num_choice-0-1": 2,
    }


def test_a_constant_answer_scores_the_share_of_the_majority_and_nothing_where_it_cannot_flatter():
    """7 of 12 positive, as CoLA's 0.583; the other two scores as for a coin, and no correlation."""
    scores = label_scores(counted([("positive", "positive")] * 7 + [("negative", "positive")] * 5))
    assert scores["majority_share"] == pytest.approx(7 / 12)
    assert scores["balanced_accuracy"] == pytest.approx(1 / 2)
    assert scores["macro_f1"] == pytest.approx((2 * 7 / (7 + 12) + 0) / 2)
    assert scores["matthews"] == 0
    assert scores["choice_balanced_accuracy"] == 0  # "neutral" is never true


def test_true_labels_of_one_class_have_only_a_majority():
    """A model that always says "positive" scored 1 in what one label for everything should not raise."""
    one = counted([("positive", "positive")] * 4)
    assert label_scores(one) == {"majority_share": 1}
    mood = counted([("negative", "negative"), ("positive", "negative")])
    table = table_of_round([event("finance", one, 4), event("mood", mood, 2)], num_test=6)["global"]
    assert table["mean"]["balanced_accuracy"] == table["mood"]["balanced_accuracy"] == 0.5


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_scores_from_summed_counts_of_clients_equal_those_of_all_answers_at_one_place():
    """A plain mean of the clients' own balanced accuracies would be another number."""
    draw = random.Random(0)
    for _ in range(20):
        pairs = [(draw.choice(CHOICES[:2]), draw.choice((*CHOICES, "cats"))) for _ in range(30)]
        true, given = zip(*pairs, strict=True)
        parts = [counted(pairs[:5]), counted(pairs[5:12]), counted(pairs[12:])]
        zeros = dict.fromkeys(ALWAYS_SCORED, 0.0)
        found = label_scores(pool([zeros | part | {"num_examples": 1} for part in parts]))
        labels = sorted(set(true))
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, given))
        assert found["macro_f1"] == pytest.approx(
            f1_score(true, given, labels=labels, average="macro", zero_division=0)
        )
        assert found["matthews"] == pytest.approx(matthews_corrcoef(true, given))


def test_spellings_of_one_label_are_one_class():
    """Went wrong: "Positive" and "positive" in one domain made all of one spelling wrong."""
    both = counted([("Positive", "positive"), ("positive", "POSITIVE")], ("Positive", "positive", "negative"))
    assert both["num_answer-1-1"] == 2
    assert both["num_choice-1-1"] == 2


def test_where_each_row_has_choices_of_its_own_there_are_no_classes():
    examples = [
        Example("Who?", name, "names", label=name, choices=(name, "no one")) for name in ("Ada", "Bo")
    ]
    records = [score_answer(example, Answer(example.label, True, 1), 5, "no one") for example in examples]
    assert count_labels(examples, records) == {}


def event(domain: str, counts: dict[str, float], num: int) -> dict[str, float]:
    found = (
        dict.fromkeys(ALWAYS_SCORED, 0.0) | {"score": 0.5, "num_scored": num, "num_examples": num} | counts
    )
    return {f"eval/{domain}/{name}@global": value for name, value in found.items()}


def test_the_table_of_a_round_has_scores_by_label_and_keeps_the_counts_they_come_from():
    """finance: 1 of 1 negative and 1 of 2 positive right, 3 / 4. mood: all right, 1. Mean over domains 7 / 8."""
    finance = counted([("negative", "negative"), ("positive", "positive"), ("positive", "neutral")])
    mood = counted([("negative", "negative"), ("positive", "positive")])
    table = table_of_round([event("finance", finance, 3), event("mood", mood, 2)], num_test=5)["global"]
    assert table["finance"]["balanced_accuracy"] == pytest.approx(3 / 4)
    assert table["finance"]["num_answer-2-1"] == 1
    assert table["mean"]["balanced_accuracy"] == pytest.approx(7 / 8)
    assert "num_answer-2-1" not in table["mean"]


def test_counts_over_different_choices_are_not_summed():
    """Class 1 is neutral at one client and positive at the other."""
    two = counted([("positive", "positive")], ("negative", "positive"))
    three = counted([("neutral", "neutral")])
    table = table_of_round([event("finance", two, 1), event("finance", three, 1)], num_test=2)["global"]
    assert table["finance"]["score"] == 0.5
    assert not [name for name in table["finance"] if "label" in name or "num_answer" in name]
    assert "balanced_accuracy" not in table["finance"]
