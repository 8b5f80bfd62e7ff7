"""Five small domains.

Every example carries the ground truth for `data.checks`. The companies and people are made up; the facts are
true. The medical texts show a voice and are no medical advice. As in real data, a fact may occur in training
and in test under different questions, but no test prompt is a near copy of a training prompt.
"""

import random
import re
from collections import Counter

from fedsdr.data.examples import Example
from fedsdr.data.readers import Record
from fedsdr.seeds import seed_for
from tools.demo_data import code, finance, general, math, medicine

NUM_TRAIN = 240
NUM_TEST = 60
# Two prompts are near copies if they share this part of their words (Jaccard index of the word sets).
NEAR_COPY = 0.8

_DOMAINS = {
    "code": code.examples,
    "finance": finance.examples,
    "general": general.examples,
    "math": math.examples,
    "medicine": medicine.examples,
}


def demo_data(seed: int) -> dict[str, tuple[list[Record], list[Record]]]:
    """Make the training and test examples of every domain, sorted by its name.

    Args:
        seed: Draws wordings and numbers and what is test; the same seed gives the same bytes.

    Returns:
        For each domain 240 training and 60 test examples; labels occur equally often in both.
    """
    return {
        domain: _split(make(random.Random(seed_for(seed, "demo", domain))), NUM_TRAIN, NUM_TEST)
        for domain, make in _DOMAINS.items()
    }


def _split(candidates: list[Example], num_train: int, num_test: int) -> tuple[list[Record], list[Record]]:
    """Take the first candidates for test, then for training those that are near none of them."""
    unique = list({(example.instruction, example.context): example for example in candidates}.values())
    test = _take(unique, num_test)
    test_words = [_words(example) for example in test]
    rest = [example for example in unique if not _is_near(_words(example), test_words)]
    return [Record(example) for example in _take(rest, num_train)], [Record(example) for example in test]


def _take(examples: list[Example], num: int) -> list[Example]:
    """Take `num` examples from the front, the same number of each label."""
    share = num // len({example.label for example in examples})
    taken: Counter[str] = Counter()
    chosen = []
    for example in examples:
        if taken[example.label] < share:
            taken[example.label] += 1
            chosen.append(example)
    return chosen


def _words(example: Example) -> set[str]:
    return set(re.findall(r"\w+", f"{example.instruction} {example.context}".lower()))


def _is_near(words: set[str], others: list[set[str]]) -> bool:
    return any(len(words & other) >= NEAR_COPY * len(words | other) for other in others)
