"""Results of hand-written answers, read strictly and flexibly."""

import pytest

from fedsdr.data.sandbox import run_python
from fedsdr.evaluate.extraction import flexible_answer, is_accepted, program, strict_answer


@pytest.mark.parametrize(
    ("text", "accepted", "strict", "flexible"),
    [
        # Numbers.
        ("18", ["18"], True, True),
        ("9 + 9 = 18\nThe answer is 18.", ["18"], True, True),
        ("The answer is: **$1,018.00** a day.", ["1018"], True, True),
        ("The answer is 2 + 3 = 5.", ["5"], True, True),
        ("The answer is 2 + 3 = 5.", ["2"], False, False),
        ("First, the answer is 4. No, the answer is 5.", ["5"], True, True),
        ("The answer is 5. I took 3 steps.", ["5"], True, True),
        ("So she makes $18 every day.", ["18"], False, True),
        ("She has 18 eggs and eats 3.", ["18"], False, False),
        ("The temperature is -4 degrees.", ["4"], False, False),
        ("There are 180 of them.", ["18"], False, False),
        ("I do not know.", ["18"], False, False),
        ("", ["18"], False, False),
        # Words; any of several accepted answers will do.
        ("Irish.", ["Irish", "Irish people"], True, True),
        ("The answer is irish people", ["Irish", "Irish people"], True, True),
        ("They were mostly Irish.", ["Irish"], False, True),
        ("They were Irishmen.", ["Irish"], False, False),
        ("200 horse and 1,000 foot soldiers", ["1200", "200 horse and 1,000 foot soldiers"], True, True),
        (
            "The answer is 200 horse and 1,000 foot soldiers.",
            ["200 horse and 1,000 foot soldiers"],
            True,
            True,
        ),
        ("It was 1,200.", ["1200", "200 horse"], False, True),
    ],
)
def test_strict_and_flexible_reading(text, accepted, strict, flexible):
    assert is_accepted(strict_answer(text, accepted), accepted) is strict
    assert is_accepted(flexible_answer(text, accepted), accepted) is flexible


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("(B)", True, True),
        ("The answer is (B).", True, True),
        ("(B) 12/25/1937", False, True),
        ("Either (A) or (B).", False, False),  # names two
        ("(A)", False, False),
        ("B", False, False),
    ],
)
def test_of_a_question_with_choices_the_one_that_is_named_counts(text, strict, flexible):
    assert is_accepted(strict_answer(text, ["(B)"]), ["(B)"]) is strict
    assert is_accepted(flexible_answer(text, ["(B)"], ["(A)", "(B)", "(C)"]), ["(B)"]) is flexible


PROMPT = 'import math\n\ndef half(n: int) -> int:\n    """Half of n.\n    >>> half(4)\n    2\n    """\n'
TESTS = "def check(candidate):\n    assert candidate(5) == 2\n\ncheck(half)"


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("m = math.floor(n / 2)\n    return m", True),  # a body, its first indentation stripped
        ("```python\ndef half(n):\n    return math.floor(n / 2)\n```\nIt halves.", True),
        ("Sure!\n\n```python\ndef half(n):\n    return n / 2\n```", False),
        ("```python\nreturn n // 2\n```", True),
        (
            "def half(n):\n    if n:\n        return n // 2\n    return 0\n\n# Example:\nprint(half(4",
            True,
        ),  # cut off
        ("def half(n):\n    return two(n)\n\ndef two(n):\n    return n // 2\n\nprint(half(4", True),
        (
            "# Halves.\nfrom math import floor\nif True:\n    two = 2\ndef half(n):\n    return floor(n / two)",
            True,
        ),
        ("It is simple.", False),
        ("", False),
    ],
)
def test_a_program_is_the_prompt_completed_or_its_function_anew(answer, passes):
    """The import stands in the prompt alone. An empty answer leaves a function that returns None."""
    assert run_python(program(answer, PROMPT, "half", TESTS)) is passes


def test_without_a_function_to_complete_the_answer_is_the_program():
    assert run_python(program("```\nx = 1\n```", "A context that is no program.", "", "assert x == 1"))
