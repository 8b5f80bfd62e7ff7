"""Win rates by judges whose rule is known, so that every number can be derived."""

import random
import re

import pytest

from fedsdr.config import Model
from fedsdr.data.examples import Example
from fedsdr.evaluate.judge import win_rate
from fedsdr.model.remote import Judge
from fedsdr.stats import wilson


def shown(prompt: str) -> tuple[str, str]:
    """The two answers in a prompt, in their places."""
    found = re.search(r"Answer A:\n(.*)\n\nAnswer B:\n(.*)\n\nReply", prompt, re.DOTALL)
    assert found
    return found[1], found[2]


def longest(prompt: str) -> str:
    first, second = shown(prompt)
    return "tie" if len(first) == len(second) else " A." if len(first) > len(second) else "b\n"


PROMPTS = [
    Example(f"Question {n}?", "", "general" if n < 6 else "medicine", context=f"c{n}") for n in range(10)
]
A = ["aaa"] * 4 + ["a"] * 2 + ["aaa", "a", "aa", "same"]
B = ["bb"] * 6 + ["b", "bb", "bb", "same "]


def test_a_judge_that_takes_the_longest_answer(judge_by):
    """general: a is longer 4 times, shorter twice. medicine: once longer, once shorter, as long once, equal once."""
    judge, asked = judge_by(longest)
    general, medicine, whole = win_rate(PROMPTS, A, B, judge, "global", "base")
    assert {key: general[key] for key in ("a", "b", "domain", "num", "wins", "ties", "losses")} == {
        "a": "global", "b": "base", "domain": "general", "num": 6, "wins": 4, "ties": 0, "losses": 2,
    }  # fmt: skip
    assert (medicine["wins"], medicine["ties"], medicine["losses"], medicine["rate"]) == (1, 2, 1, 1 / 2)
    assert whole["domain"] == "all"
    assert whole["rate"] == pytest.approx((5 + 2 / 2) / 10)
    assert (whole["low"], whole["high"]) == pytest.approx(wilson(0.6, 10))
    # It says the same in both orders, and so names each place equally often.
    assert (whole["agreement"], whole["first_rate"], whole["num_unreadable"]) == (1, 1 / 2, 0)
    # Both orders of all but the equal answers, and what is judged is in the question.
    assert len(asked) == len(set(asked)) == 18
    assert sum("Question 3?\n\nc3" in prompt for prompt in asked) == 2


def test_a_judge_that_takes_the_first_place_prefers_no_model(judge_by):
    (record,) = win_rate(PROMPTS[:6], A[:6], B[:6], judge_by(lambda prompt: "A")[0])
    assert (record["wins"], record["ties"], record["losses"], record["rate"]) == (0, 6, 0, 1 / 2)
    assert (record["agreement"], record["first_rate"]) == (0, 1)


def test_a_judge_that_is_garbage_counts_neither_way(judge_by):
    """Neither does one that says more than the word, nor one that can be read in one order only."""
    for text in ("Both are fine.", "A or B", "Answer A", "", "AB"):
        (record,) = win_rate(PROMPTS[:6], A[:6], B[:6], judge_by(lambda prompt, text=text: text)[0])
        assert (record["num"], record["num_unreadable"], record["rate"], record["low"]) == (0, 6, None, None)
    (record,) = win_rate(
        PROMPTS[:6], A[:6], B[:6], judge_by(lambda prompt: "A" if shown(prompt)[0][0] == "a" else "?")[0]
    )
    assert (record["num"], record["num_unreadable"]) == (0, 6)


def test_a_judge_that_says_tie_agrees_with_itself_and_names_no_place(judge_by):
    (record,) = win_rate(PROMPTS[:6], A[:6], B[:6], judge_by(lambda prompt: "Tie")[0])
    assert (record["ties"], record["agreement"], record["first_rate"]) == (6, 1, None)


def test_equal_answers_are_ties_of_which_nobody_is_asked(judge_by):
    judge, asked = judge_by(lambda prompt: "A")
    (record,) = win_rate(PROMPTS[:3], B[:3], B[:3], judge)
    assert (record["num"], record["ties"], record["rate"], record["agreement"]) == (3, 3, 1 / 2, None)
    assert asked == []


def test_a_judge_that_guesses_agrees_with_itself_half_the_time(judge_by):
    """Of 200 prompts: both orders say a or b each with 1/2, so wins, losses and agreement are binomial.

    Wins have mean 50 and standard deviation sqrt(200 x 1/4 x 3/4) = 6.1; agreement 1/2, sqrt(1/4/200) = 0.035.
    """
    guess = lambda prompt: "A" if random.Random(prompt).random() < 0.5 else "B"  # noqa: E731
    prompts = [Example(f"Question {n}?", "", "general") for n in range(200)]
    (record,) = win_rate(prompts, ["aa"] * 200, ["bb"] * 200, judge_by(guess)[0])
    assert abs(record["wins"] - 50) < 4 * 6.1
    assert abs(record["agreement"] - 1 / 2) < 4 * 0.035
    assert abs(record["first_rate"] - 1 / 2) < 4 * 0.025  # of 400 verdicts
    assert record["low"] < 1 / 2 < record["high"]


@pytest.mark.real_model
def test_llama_cpp_is_asked_as_a_judge(llama_cpp: str, real_model: Model):
    """A model of 135M parameters is no good judge; every prompt has a verdict or is counted as without one."""
    prompts = [Example("Name the capital of France.", "Paris", "general"), Example("2 + 2?", "4", "math")]
    judge = Judge(llama_cpp, "smollm2")
    records = win_rate(prompts, ["Paris.", "4"], ["I do not know.", "five"], judge)
    print(records)
    assert [record["domain"] for record in records] == ["general", "math", "all"]
    assert records[-1]["num"] + records[-1]["num_unreadable"] == 2
