"""Scores of free text, counted by hand and against Google's rouge-score."""

import random

import pytest

from fedsdr.data.examples import Example
from fedsdr.evaluate.tasks import score_answer, summarise
from fedsdr.evaluate.text_scores import exact_match, rouge_l, token_f1
from fedsdr.model.generation import Answer


@pytest.mark.parametrize(
    ("text", "truth", "exact", "f1", "rouge"),
    [
        ("The cat sat.", "The cat sat.", 1, 1, 1),
        ("the  cat\nsat", "the cat sat", 1, 1, 1),
        ("The cat sat", "The cat sat.", 0, 1, 1),  # the task may be to set the point
        ("sat the cat", "the cat sat", 0, 1, 2 / 3),  # common subsequence "the cat": 2 of 3 and 2 of 3
        ("a b c d", "a c x", 0, 4 / 7, 4 / 7),  # 2 of 4 and 2 of 3
        ("a a a", "a", 0, 1 / 2, 1 / 2),  # 1 of 3 and 1 of 1
        ("", "word", 0, 0, 0),
        ("猫坐着", "猫站着", 0, 2 / 3, 2 / 3),  # a character is a token
        ("Cafe\u0301", "Caf\u00e9", 1, 1, 1),
    ],
)
def test_by_hand(text: str, truth: str, exact: float, f1: float, rouge: float):
    assert exact_match(text, truth) == exact
    assert token_f1(text, truth) == pytest.approx(f1)
    assert rouge_l(text, truth) == pytest.approx(rouge)


def test_rouge_l_is_that_of_the_reference_implementation():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    draw = random.Random(0)
    for _ in range(50):
        text, truth = (" ".join(draw.choices("abcde", k=draw.randint(1, 12))) for _ in range(2))
        assert rouge_l(text, truth) == pytest.approx(scorer.score(truth, text)["rougeL"].fmeasure)


OPEN = Example("Summarise.", "the cat sat", "news")
SUM = Example("2 plus 3?", "The answer is 5.", "math", answer="5")


@pytest.mark.parametrize(("which", "num"), [("off", 0), ("free text", 1), ("all", 2)])
def test_only_the_answers_that_the_setting_names_are_compared(which: str, num: int):
    records = [
        score_answer(OPEN, Answer("sat the cat", True, 3), 5),
        score_answer(SUM, Answer("5", True, 1), 5),
    ]
    found = summarise(records, which)
    assert found.get("num_text", 0) == num
    # of "5" and "The answer is 5.": one of one and one of four
    expected = {0: None, 1: 2 / 3, 2: (2 / 3 + 2 / 5) / 2}[num]
    assert found.get("rouge_l") == (None if expected is None else pytest.approx(expected))
