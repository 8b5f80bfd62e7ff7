"""The labels of a domain as numbered classes, so that counts by label reveal no label text.

Input: the examples of one domain. Output: their labels, folded and sorted; empty if each row has its own
choices.
"""

from collections.abc import Iterable

from fedsdr.data.examples import Example
from fedsdr.data.truth.labels import fold_label

MOST_CLASSES = 100


def classes_of(examples: Iterable[Example]) -> tuple[str, ...]:
    """Return the folded choices of the labelled examples, sorted; a class is identified by its index.

    () if no example has a label and choices, if the choices differ between examples (such as names in a
    text), or if there are more than `MOST_CLASSES`, when counts by label would be meaningless.
    """
    found = {
        tuple(sorted({fold_label(choice) for choice in example.choices}))
        for example in examples
        if example.label and example.choices
    }
    return found.pop() if len(found) == 1 and len(min(found)) <= MOST_CLASSES else ()
