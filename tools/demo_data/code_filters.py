"""Code: functions that look through a list, one for every pair of a condition and an operation."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Function(NamedTuple):
    """A function, two descriptions of it, and calls with their results."""

    call: str
    does: tuple[str, ...]
    body: str
    tests: tuple[str, ...]


def filters() -> list[Function]:
    """Every pair of a condition and something to do with the items that meet it."""
    functions = []
    for items, variable, samples, conditions, operations in (
        ("numbers", "n", _NUMBER_SAMPLES, _NUMBER_CONDITIONS, _OPERATIONS + _NUMBER_OPERATIONS),
        ("words", "w", _WORD_SAMPLES, _WORD_CONDITIONS, _OPERATIONS),
    ):
        for suffix, clause, test, holds in conditions:
            for prefix, does, body, compute in operations:
                fill = {"items": items, "v": variable, "test": test, "clause": clause}
                functions.append(
                    Function(
                        call=f"{prefix}_{suffix}({items})",
                        does=(does[0].format(**fill), does[1].format(**fill)),
                        body=textwrap.indent(
                            f"# Look for {items} that {clause}.\n{body.format(**fill)}", "    "
                        ),
                        tests=tuple(f"({sample!r}) == {compute(sample, holds)!r}" for sample in samples),
                    )
                )
    return functions


_Items = Sequence[Any]
_Holds = Callable[[Any], bool]

_NUMBER_SAMPLES: tuple[list[int], ...] = ([4, -7, 30, 15, 0, 101, -12, 9], [3], [])
_WORD_SAMPLES: tuple[list[str], ...] = (
    ["level", "Apple", "is", "trees", "Otto", "elephant", "buses", "noon"],
    ["on"],
    [],
)

# Suffix of the function's name, clause, test in the code, and the same test for the expected values.
_NUMBER_CONDITIONS: tuple[tuple[str, str, str, _Holds], ...] = (
    ("even", "are even", "n % 2 == 0", lambda n: n in range(-1000, 1001, 2)),
    ("odd", "are odd", "n % 2 == 1", lambda n: n in range(-999, 1000, 2)),
    ("positive", "are positive", "n > 0", lambda n: n >= 1),
    ("negative", "are negative", "n < 0", lambda n: n <= -1),
    ("threes", "are divisible by 3", "n % 3 == 0", lambda n: n in range(-999, 1000, 3)),
    ("fives", "are divisible by 5", "n % 5 == 0", lambda n: n in range(-1000, 1001, 5)),
    ("big", "are greater than 10", "n > 10", lambda n: n >= 11),
    ("small", "are less than 10", "n < 10", lambda n: n <= 9),
    ("two_digit", "lie between 10 and 99", "10 <= n <= 99", lambda n: n in range(10, 100)),
)
_WORD_CONDITIONS: tuple[tuple[str, str, str, _Holds], ...] = (
    ("long", "have more than 4 letters", "len(w) > 4", lambda w: len(w) >= 5),
    ("short", "have fewer than 4 letters", "len(w) < 4", lambda w: len(w) <= 3),
    ("plural", "end in the letter s", 'w.endswith("s")', lambda w: w[-1] == "s"),
    ("capitalised", "begin with a capital letter", "w[0].isupper()", lambda w: w[0] != w[0].lower()),
    ("lowercase", "are written in lower case", "w.islower()", lambda w: w == w.lower()),
    ("with_e", "contain the letter e", '"e" in w', lambda w: w.count("e") > 0),
    ("palindromes", "read the same backwards", "w == w[::-1]", lambda w: list(w) == list(reversed(w))),
)
_OPERATIONS: tuple[tuple[str, tuple[str, str], str, Callable[[_Items, _Holds], Any]], ...] = (
    (
        "count",
        (
            "returns how many of the {items} {clause}",
            "counts those entries of a list of {items} that {clause}",
        ),
        "return sum(1 for {v} in {items} if {test})",
        lambda items, holds: len(list(filter(holds, items))),
    ),
    (
        "keep",
        ("returns a list of the {items} that {clause}", "filters {items}: only those that {clause} stay"),
        "return [{v} for {v} in {items} if {test}]",
        lambda items, holds: list(filter(holds, items)),
    ),
    (
        "drop",
        ("removes all {items} that {clause}", "returns the {items} in order, without any that {clause}"),
        "return [{v} for {v} in {items} if not ({test})]",
        lambda items, holds: [item for item in items if not holds(item)],
    ),
    (
        "any",
        ("tells whether some {items} {clause}", "returns True when a list has {items} that {clause}"),
        "return any({test} for {v} in {items})",
        lambda items, holds: len(list(filter(holds, items))) > 0,
    ),
    (
        "all",
        ("checks that all {items} {clause}", "returns True only if all of the {items} given {clause}"),
        "return all({test} for {v} in {items})",
        lambda items, holds: len(list(filter(holds, items))) == len(items),
    ),
    (
        "first",
        (
            "finds the first of the {items} that {clause}, else None",
            "returns the first of those {items} that {clause}; None if there are none",
        ),
        "for {v} in {items}:\n    if {test}:\n        return {v}\nreturn None",
        lambda items, holds: [*filter(holds, items), None][0],
    ),
)
_NUMBER_OPERATIONS: tuple[tuple[str, tuple[str, str], str, Callable[[_Items, _Holds], Any]], ...] = (
    (
        "sum",
        ("adds up the {items} that {clause}", "returns the total of those {items} in a list that {clause}"),
        "return sum({v} for {v} in {items} if {test})",
        lambda items, holds: sum(filter(holds, items)),
    ),
    (
        "largest",
        (
            "gives the largest of the {items} that {clause}, or None",
            "picks the maximum among {items} that {clause}",
        ),
        "return max(({v} for {v} in {items} if {test}), default=None)",
        lambda items, holds: [None, *sorted(filter(holds, items))][-1],
    ),
)
