"""Counts of the rewrite paradox, counted by hand."""

import pytest

from fedsdr.data.examples import Example
from fedsdr.distill.paradox import distill_metrics, paradox_counts
from fedsdr.distill.rewriting import Rewriting

LABELLED = Example("Label?", "POSITIVE", "finance", label="POSITIVE", choices=("POSITIVE", "NEGATIVE"))
SUM = Example("2 plus 3?", "2 plus 3 is 5. The answer is 5.", "math", answer="5")
OPEN = Example("Why?", "Because it is so.", "general")


def test_hand_counted_pairs():
    """Three pairs.

    finance: true 1 word; "Sure, it is negative." 4 words, one filler, another label: omitted, unsupported.
    math: true 9 words; "The answer is 5." 4 words: nothing lost, nothing new.
    general: true 4 words; "so it is so it is 7 times" 8 words; its 3-grams are so-it-is (twice), it-is-so,
    is-so-it, it-is-7, is-7-times: 6 of which 1 repeats; 7 is nowhere in the example: unsupported.
    """
    counts = paradox_counts(
        [LABELLED, SUM, OPEN], ["Sure, it is negative.", "The answer is 5.", "so it is so it is 7 times"]
    )
    assert counts == pytest.approx(
        {
            "num_examples": 3,
            "num_checkable": 2,
            "omission_rate": 1 / 2,
            "omission_rate_true": 0,
            "unsupported_rate": 2 / 3,
            "length_ratio": 16 / 14,
            "words": 16 / 3,
            "words_true": 14 / 3,
            "filler_rate": (100 / 4) / 3,
            "filler_rate_true": 0,
            "redundancy": (1 / 6) / 3,
            "redundancy_true": 0,
        }
    )


def test_the_true_responses_themselves_show_no_paradox():
    examples = [LABELLED, SUM, OPEN]
    counts = paradox_counts(examples, [example.response for example in examples])
    assert counts["omission_rate"] == counts["unsupported_rate"] == 0
    assert counts["length_ratio"] == 1


def test_a_true_response_without_its_own_truth_is_told_as_a_false_alarm_of_the_check():
    """Two checkable pairs, one of which the data themselves get wrong."""
    wrong = Example("2 plus 4?", "It is 7.", "math", answer="6")
    counts = paradox_counts([SUM, wrong, OPEN], ["The answer is 5.", "The answer is 6.", ""])
    assert (counts["omission_rate"], counts["omission_rate_true"]) == (0, 1 / 2)


def test_without_ground_truth_nothing_counts_as_omitted_and_the_cover_says_so():
    counts = paradox_counts([OPEN], [""])
    assert counts["num_checkable"] == 0
    assert counts["omission_rate"] == 0
    assert counts["length_ratio"] == 0


def test_rewritings_that_are_taught_are_counted_by_label():
    """Sorted labels: 0 negative, 1 positive. Of two negatives one is taught, of one positive none."""
    choices = ("positive", "negative")
    examples = [
        Example("q", label, "finance", label=label, choices=choices)
        for label in ("negative", "negative", "positive")
    ]
    examples.append(Example("q", "r", "general"))
    rewritings = [
        Rewriting("x", "x", "reference", ""),
        *(Rewriting("x", "r", "", "unlikely label") for _ in range(2)),
        Rewriting("x", "x", "reference", ""),
    ]
    counts = {key: num for key, num in distill_metrics(examples, rewritings).items() if "by-label" in key}
    assert counts == {
        "by-label/finance/num_examples-0": 2,
        "by-label/finance/num_kept-0": 1,
        "by-label/finance/num_examples-1": 1,
        "by-label/finance/num_kept-1": 0,
    }
