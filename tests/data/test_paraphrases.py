"""The paraphrases are examples with ground truth that their own responses keep, and are in other words."""

from collections import Counter

from fedsdr.config import Data
from fedsdr.data.checks import is_checkable, lost, num_words
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


def test_every_program_in_a_fence_or_alone_passes_its_tests():
    """That a sentence stands before a program without a fence is what the check does not see through."""
    for example, text in PAIRS:
        if example.tests:
            program = text if "```" in text else text[text.index("def ") :]
            assert lost(example, program) == ()
