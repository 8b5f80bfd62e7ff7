import dataclasses
import json
import os
from pathlib import Path

import pytest

from fedsdr.data import checks
from fedsdr.data.checks import (
    FILLERS,
    extract_code,
    filler_rate,
    final_answer,
    find_label,
    is_checkable,
    is_refusal,
    is_self_referring,
    lost,
    num_words,
    redundancy,
    same_answer,
    unsupported,
)
from fedsdr.data.examples import Example

MOODS = ("negative", "neutral", "positive")
FINANCE = Example(
    instruction="Is it negative, neutral or positive?",
    context="Profit rises 8 %.",
    response="positive",
    domain="finance",
    label="positive",
    choices=MOODS,
)
MATH = Example(
    instruction="Ann has 1,000 pens and buys 20. How many has she?",
    response="She has 1000 + 20 = 1020 pens. The answer is 1020.",
    domain="math",
    answer="1020",
)
FACTS = Example(
    instruction="Who was first on the Moon?",
    response="Neil Armstrong, in 1969.",
    domain="general",
    facts=("Neil Armstrong", "1969"),
)
CODE = Example(
    instruction="Write double(n).",
    response="def double(n):\n    return 2 * n",
    domain="code",
    tests="assert double(4) == 8\nassert double(0) == 0",
)


def test_filler_rate_counts_each_phrase_once_per_hundred_words():
    text = "Certainly, it is important to rest. I hope this helps!"  # 10 words, 3 fillers
    assert num_words(text) == 10
    assert filler_rate(text) == 30
    assert filler_rate("Make sure that uncertainly is no filler.") == 0
    assert filler_rate("") == 0


def test_filler_rate_reads_typographic_apostrophes_and_any_case():
    assert "here's" in FILLERS
    assert filler_rate("Here’s one") == filler_rate("HERE'S one") == 50


def test_redundancy_is_the_share_of_repeated_three_word_runs():
    assert redundancy("one two") == 0
    assert redundancy("one two three four") == 0
    # a b c, b c a, c a b, then a b c again: one of four repeats.
    assert redundancy("a b c a b c") == 0.25


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Positive.", "positive"),
        ("The tone is NEGATIVE for holders", "negative"),
        ("neither positive nor negative", ""),
        ("positively glowing", ""),
        ("", ""),
        ("positive, very positive", "positive"),
    ],
)
def test_find_label_wants_exactly_one_choice_as_a_whole_word(text, label):
    assert find_label(text, MOODS) == label


def test_find_label_prefers_the_longer_choice():
    assert find_label("It is very bad.", ("bad", "very bad")) == "very bad"
    assert find_label("It is good enough.", ("good", "good enough")) == "good enough"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 2 = 4. The answer is 4.", "4"),
        ("The answer is 3. No, the answer is $1,250.50!", "1,250.50"),
        ("The answer is: **-7** apples", "-7"),
        ("The answer is 3/4.", "3/4"),
        ("The answer is Paris.", "Paris"),
        ("We get 5-3 = 2 pens", "2"),
        ("She has 10-12", "12"),
        ("So x = - 3", "- 3"),
        ("Version v2 costs nothing", ""),
        ("none", ""),
        # Went wrong once: working after the words was cut at its first number.
        ("The answer is 18 + 39 = 57", "57"),
        (r"The answer is $\boxed{12}$.", "12"),
        (r"So it costs \(3 + 9 = 12\).", "12"),
        (r"The answer is \$1,250.", "1,250"),
        (r"The answer is \text{blue}.", "blue"),
        ("So the answer is 5 x 3 = 15. Well done", "15"),
        ("The answer is 18 marbles - the rest is lost.", "18"),
    ],
)
def test_final_answer_is_stated_or_else_the_last_number(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("1,000", "1000.00", True),
        ("$5", "5.", True),
        ("50%", "50", True),
        ("0.75", "3/4", True),
        ("−2", "-2", True),
        ("2", "-2", False),
        ("Paris", "paris.", True),
        ("Paris", "Rome", False),
        ("12", "twelve", False),
        ("1/0", "1/0", True),
        ("", "", False),
    ],
)
def test_same_answer_compares_numbers_by_value_and_the_rest_as_text(a, b, same):
    assert same_answer(a, b) is same


@pytest.mark.parametrize("example", [FINANCE, MATH, FACTS, CODE], ids=lambda e: e.domain)
def test_the_true_response_loses_nothing_and_is_supported(example):
    assert is_checkable(example)
    assert lost(example, example.response) == ()
    assert not unsupported(example, example.response)


@pytest.mark.parametrize(
    ("example", "text", "kinds"),
    [
        (FINANCE, "The tone is negative.", ("label",)),
        (FINANCE, "The profit rises.", ("label",)),
        (FINANCE, "It is positive for holders.", ()),
        (MATH, "The answer is 1,020.", ()),
        (MATH, "The answer is 1021.", ("answer",)),
        (MATH, "The answer is that she has 1020 pens.", ()),
        (MATH, "The answer is about 1020.", ()),
        (MATH, "The answer is that of 1020 pens 3 are red.", ("answer",)),
        (MATH, "The answer is not 1020.", ("answer",)),
        (MATH, "The answer is less than 1020.", ("answer",)),
        (MATH, "The answer is 1020 + 1020.", ("answer",)),
        (MATH, "The answer is 1020 * 2.", ("answer",)),
        (MATH, r"The answer is \frac{1020}{1020}", ("answer",)),
        (FACTS, "1969. Neil Armstrong.", ()),
        (FACTS, "1. Neil Armstrong\n2. in 1969", ()),
        (FACTS, "In 1969 it was neil\n armstrong.", ()),
        (FACTS, "It was Neil Armstrong in 19691.", ("facts",)),
        (CODE, "Here:\n```python\ndef double(n):\n    return n + n\n```\nIt adds.", ()),
        (CODE, "def double(n):\n    return n * n", ("tests",)),
        (CODE, "It doubles.", ("tests",)),
    ],
)
def test_lost_names_the_kinds_of_truth_that_a_text_drops(example, text, kinds):
    assert lost(example, text) == kinds


@pytest.mark.parametrize("text", ["It is 37.5.", "It is 1.37.", "It is -37.", "It is 37,000."])
def test_a_number_within_another_is_no_fact(text):
    example = dataclasses.replace(FACTS, facts=("37",))
    assert lost(example, text) == ("facts",)
    assert lost(example, "Between 36-37 or (37).") == ()
    assert lost(example, "It is 36%-37%.") == ()


@pytest.mark.parametrize(
    ("fact", "text", "is_lost"),
    [
        ("do not rub", "Don't rub the eye.", False),
        ("don't rub", "You do not rub the eye, isn't that so?", False),
        ("can't swim", "Cats cannot swim.", False),
        ("cannot swim", "Cats can’t swim.", False),
        ("should not drink", "You shouldn't drink it.", False),
        ("will not help", "It won't help.", False),
        ("do not rub", "Do rub the eye.", True),
        ("ice", "You shouldn't use ice.", True),
        ("ice", "You use ice, don't you?", False),
        ("ice", "You can't go wrong: it isn't only cold packs, ice helps too.", False),
    ],
)
def test_a_contraction_states_what_its_words_state(fact, text, is_lost):
    """Went wrong once: "don't" for "do not" lost the fact."""
    response = f"Know this: {fact}."
    assert lost(dataclasses.replace(FACTS, response=response, facts=(fact,)), text) == is_lost * ("facts",)


def test_the_numbers_that_count_a_list_are_no_facts():
    example = dataclasses.replace(FACTS, facts=("2",))
    assert lost(example, "1. One thing\n2. Another") == ("facts",)
    assert lost(example, "2. That is how many.") == ()


def test_a_program_that_was_run_is_not_run_again(monkeypatch: pytest.MonkeyPatch):
    """A client's responses are checked before and after fall-back, and once more as rewritings."""
    ran: list[str] = []
    monkeypatch.setattr(checks, "run_python", lambda source, timeout: not ran.append(source))
    example = Example("Give one.", "a = 1", "code", tests="assert a == 1  # of this test alone")
    assert [lost(example, text) for text in ("a = 1", "a = 1", "a = 1.0")] == 3 * [()]
    assert ran == [f"{text}\n\n{example.tests}\n" for text in ("a = 1", "a = 1.0")]


def test_all_kinds_can_be_lost_at_once_and_none_without_ground_truth():
    every = dataclasses.replace(FINANCE, answer=MATH.answer, facts=FACTS.facts, tests=CODE.tests)
    assert lost(every, "nothing") == ("label", "answer", "facts", "tests")
    plain = Example(instruction="?", response="!", domain="d")
    assert not is_checkable(plain)
    assert lost(plain, "nothing") == ()


@pytest.mark.parametrize(
    ("example", "text", "expected"),
    [
        (FINANCE, "positive, since profit rises 8 %", False),
        (FINANCE, "not negative but positive", False),  # denied, so not stated
        (FINANCE, "It is neutral rather than negative.", True),  # the instruction lists it: no excuse
        (FINANCE, "positive, profit rises 9 %", True),
        (MATH, "1. Add 20 to 1000.\n2. That gives 1,020.", False),  # ordinals of a list
        (MATH, "She pays 5 dollars.", True),
        (FACTS, "He landed in 1970.", True),
        (FACTS, "He landed in July.", False),  # a wrong claim without a number passes: the stated limit
        (CODE, "def double(n):\n    return n * 20 // 10", False),
    ],
)
def test_unsupported_finds_wrong_labels_and_new_numbers(example, text, expected):
    assert unsupported(example, text) is expected


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("Ann has 10 pens and gives away 3, so 7 are left.", "10 - 3 = 7"),
        ("It takes three to 5 days.", "It takes 3 - 5 days."),
        ("It takes 3 to 5 days.", "How long it takes:\n- 3 to 5 days"),
        ("Between 5 % and 10 %.", "5%-10%"),
        ("Between 5 and 10 degrees.", "5°-10°"),
    ],
)
def test_a_minus_between_numbers_and_a_bullet_are_no_signs(given, text):
    """Went wrong once: nearly all calculations written with blanks counted as unsupported."""
    assert not unsupported(Example("How much?", given, "math"), text)
    assert unsupported(Example("How much?", given, "math"), "It is -3.")


def test_a_label_that_the_response_names_is_supported():
    example = dataclasses.replace(FINANCE, response="Not negative but positive.")
    assert not unsupported(example, "It is positive rather than negative.")
    assert not unsupported(example, "It is positive rather than neutral.")
    assert unsupported(example, "It is positive, or neutral at most.")


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I cannot rewrite that.",
        "I’m sorry, I can't help.",
        "I cannot provide a response.",
        "I'm ready to assist you. What is the question?",
        "As an AI, I have no opinions.",
        "How can I help you today?",
        # Went wrong once: the commonest short refusals were taught.
        "Sorry, I can't help with that.",
        "Sorry, but I cannot assist with that request.",
        "I'm unable to provide medical advice.",
        "I'm not able to answer that.",
        "Unfortunately, I cannot answer this.",
        "I'm afraid I can't help with this.",
    ],
)
def test_is_refusal(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Here is a rewritten version: Paris.",
        "The reference answer says Paris.",
        "Your response is correct.",
        "The original answer was Paris.",
        "To paraphrase: it is Paris.",
    ],
)
def test_is_self_referring(text):
    assert is_self_referring(text)


def test_ordinary_answers_neither_refuse_nor_refer_to_themselves():
    for text in (
        "Plants cannot grow without light.",
        "He said: I'm sorry.",
        "I am sorry to hear that you hurt your hand. Cool it.",
        "Here is the list: a, b.",
        "Paris.",
        "I can't recommend it enough.",
        "I can't help but smile, and I can't help laughing.",
        "I cannot give up now.",
        "I can't say enough about the staff.",
        "I'm unable to swim, so I took lessons.",
        "I'm not able to attend the meeting on Friday.",
        "Sorry, I was late.",
        "Sorry, the shop is closed and cannot help.",
        "Unfortunately, I cannot come to the party.",
        "Unfortunately, no treatment can help.",
    ):
        assert not is_refusal(text)
        assert not is_self_referring(text)


def test_extract_code_takes_the_first_fenced_block_or_the_whole_text():
    assert extract_code("Text\n```python\na = 1\n```\n```\nb = 2\n```") == "a = 1\n"
    assert extract_code("```\ncut off") == "cut off"
    assert extract_code("a = 1") == "a = 1"


def _real_files():
    default = Path(__file__).parents[3] / "shared" / "data"
    return sorted(Path(os.environ.get("FEDSDR_DATA", default)).glob("domains/*/*.jsonl"))


@pytest.mark.skipif(not _real_files(), reason="needs the real domains: set FEDSDR_DATA to their folder")
@pytest.mark.parametrize("path", _real_files(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_checks_are_quiet_on_real_responses(path):
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for check in (checks.is_refusal, checks.is_self_referring):
        assert sum(check(record["output"]) for record in records) < 0.01 * len(records)
    for record in records:
        example = Example(
            instruction=record["instruction"],
            context=record["input"],
            response=record["output"],
            domain=path.parent.name,
            label=record.get("label", ""),
            choices=MOODS if "label" in record else (),
            answer=record.get("answer", ""),
        )
        assert lost(example, example.response) == ()
        assert not unsupported(example, example.response)
