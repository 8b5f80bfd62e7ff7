"""The labels of a domain as numbered classes, so that counts by label need no text of a label.

Goes in: the examples of one domain. Comes out: their labels in one form and in one order, or none where the
choices belong to the rows.
"""

from collections.abc import Iterable

from fedsdr.data.examples import Example
from fedsdr.data.truth.labels import fold_label

MOST_CLASSES = 100


def classes_of(examples: Iterable[Example]) -> tuple[str, ...]:
    """Return the folded choices of the labelled examples, sorted; a class is known by its place there.

    () where no example has a label and choices, where the choices differ between examples, as names in a text
    do, and where there are more than `MOST_CLASSES`: then counts by label would say nothing.
    """
    found = {
        tuple(sorted({fold_label(choice) for choice in example.choices}))
        for example in examples
        if example.label and example.choices
    }
    return found.pop() if len(found) == 1 and len(min(found)) <= MOST_CLASSES else ()
