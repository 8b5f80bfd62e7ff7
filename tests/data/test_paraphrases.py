"""The paraphrases are examples with ground truth that their own responses keep, and are in other words."""

from collections import Counter

from fedsdr.config import Data
from fedsdr.data.checks import is_checkable, lost, num_words, unsupported
from fedsdr.data.sources import load_domains
from fedsdr.experiments.pairs import PARAPHRASES, read_pairs

PAIRS = read_pairs(PARAPHRASES)


def test_eight_for_each_built_in_domain_none_twice():
    assert Counter(example.domain for example, _ in PAIRS) == dict.fromkeys(load_domains(Data()), 8)
    assert len({text for _, text in PAIRS}) == len(PAIRS)


def test_every_response_keeps_its_ground_truth_and_no_paraphrase_repeats_it():
    for example, text in PAIRS:
        assert is_checkable(example)
        assert lost(example, example.response) == ()
        assert text.casefold() != example.response.casefold() or num_words(text) == 1


def test_every_program_passes_its_tests_also_without_a_fence_behind_a_sentence():
    for example, text in PAIRS:
        if example.tests:
            assert lost(example, text) == ()


def test_at_most_four_of_the_forty_are_judged_lost_or_unsupported():
    """Three are: "affected positively" (positive), "let cool water run" (running water), "sit up straight" (upright)."""
    judged = [text for example, text in PAIRS if lost(example, text) or unsupported(example, text)]
    assert len(judged) <= 4, judged
