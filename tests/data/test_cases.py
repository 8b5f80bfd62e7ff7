"""Situations that people met with other software, restated: what the checks must say of each."""

import ast
from textwrap import dedent

import pytest

from fedsdr.data.checks import (
    extract_code,
    final_answer,
    find_label,
    is_inconsistent,
    lost,
    same_answer,
    unsupported,
)
from fedsdr.data.examples import Example

MOODS = ("negative", "neutral", "positive")
LETTERS = ("A", "B", "C", "D")


def kept(text: str, **truth) -> bool:
    return not lost(Example(instruction="q", response=truth.pop("response", text), domain="x", **truth), text)


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("这条新闻的情绪是积极的。", {"label": "积极", "choices": ("积极", "消极")}),
        ("奥斯陆在挪威南部。", {"facts": ("挪威",)}),
        ("東京は日本の首都です。", {"facts": ("日本",)}),
        ("所以一共有42个苹果。", {"answer": "42"}),
        ("노르웨이에 있습니다.", {"facts": ("노르웨이",)}),
        ("กรุงเทพอยู่ในประเทศไทย", {"facts": ("ไทย",)}),
        ("答案是B。", {"label": "B", "choices": LETTERS}),
        ("合計15個です。", {"answer": "15"}),
    ],
)
def test_a_word_edge_is_asked_only_between_letters_of_scripts_that_use_blanks(text, truth):
    assert kept(text, **truth)


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("这条新闻的情绪不是积极的。", {"label": "积极", "choices": ("积极", "消极", "中性")}),
        ("奥斯陆不在挪威。", {"facts": ("挪威",), "response": "奥斯陆在挪威。"}),
        (
            "ポジティブではありません。",
            {"label": "ポジティブ", "choices": ("ポジティブ", "中立", "ネガティブ")},
        ),
        ("긍정적이지 않습니다.", {"label": "긍정", "choices": ("긍정", "부정", "중립")}),
        ("ไม่ใช่เชิงบวก", {"label": "เชิงบวก", "choices": ("เชิงบวก", "เชิงลบ", "กลาง")}),
        ("一共有42万人。", {"answer": "42"}),
        ("Die Zahl ist 142.", {"answer": "42"}),
        ("Norwegian", {"facts": ("Norway",), "response": "Norway"}),
    ],
)
def test_denials_and_longer_words_are_lost_in_any_script(text, truth):
    assert not kept(text, **truth)


@pytest.mark.parametrize(
    ("text", "label", "choices"),
    [
        ("The answer is B, a gas that plants use.", "B", LETTERS),
        ("(C) owl. An owl is a bird. I would not call a cat one.", "C", LETTERS),
        ("(C) owl. An owl is a bird. I would not call a cat one.", "C", tuple("ABCDEFGHI")),
        ("B. A gas that plants use", "B", LETTERS),
        ("B: a gas", "B", LETTERS),
        ("A plant needs it, so the answer is b.", "B", LETTERS),
        ("A. cat\nB. dog\nC. owl\nD. cow\n\nAnswer: C", "C", LETTERS),
        ("Vitamin C is no gas. (B)", "B", LETTERS),
        ("A gas that plants use", "", LETTERS),
        ("The answer is a gas.", "", LETTERS),
        ("Either A or B.", "", LETTERS),
        ("The answer is not B.", "", LETTERS),
        ("A, B and C are wrong.", "", LETTERS),
    ],
)
def test_option_letters(text, label, choices):
    assert find_label(text, choices) == label


@pytest.mark.parametrize(
    ("text", "gold", "wrong"),
    [
        (r"$\boxed{\frac{3}{4}}$", "3/4", "4"),
        (r"$\frac{3}{4}$", "3/4", "4"),
        (r"\(\dfrac{3}{4}\)", r"\frac{3}{4}", "3"),
        (r"$\boxed{\sqrt{2}}$", r"\sqrt{2}", "2"),
        (r"The answer is $\tfrac34$.", "0.75", "34"),
        (r"$\boxed{2\sqrt{3}}$", r"\sqrt{12}", "3"),
        (r"The area is $4\pi$.", r"4\pi", "4"),
        (r"$3\frac{1}{2}$", "3.5", "3"),
        (r"$\boxed{1 + 2x}$", "2x+1", "1"),
        (r"$\boxed{(2, -1)}$", "(2,-1)", "(-1,2)"),
        ("¾", "3/4", "3"),
        ("x = 2 or x = -3", "-3, 2", "-3"),
    ],
)
def test_fractions_roots_and_latex(text, gold, wrong):
    assert kept(text, answer=gold)
    assert not kept(text, answer=wrong)


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("Answer: 42 (see step 3)", "42"),
        ("1.5 million", "1500000"),
        ("3 1/2", "7/2"),
        ("1 000", "1000"),
        ("Das macht 1.234,50 €.", "1234.5"),
        ("1\u202f000", "1,000"),
        ("You pay 5 dollars and 50 cents.", "5.50"),
        (r"$5 \times 10^3$", "5000"),
        ("10²", "100"),
        ("The answer isn't 40 but 42.", "42"),
        ("42 is the answer.", "42"),
    ],
)
def test_a_number_with_all_that_belongs_to_it_is_the_answer(text, gold):
    assert kept(text, answer=gold)


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("1.5 million", "1.5"),
        ("3 1/2", "3"),
        ("1 000", "1"),
        ("7 or 8", "7"),
        ("7 or 8", "8"),
        ("The answer is 7 to 9.", "7"),
        ("The answer is 3:30.", "3"),
        ("The answer is 5 dollars and 50 cents.", "5"),
        ("10²", "10"),
        ("5e3", "5"),
        ("1.000.000", "1"),
        ("The answer is 12x.", "12"),
        ("42 is not the answer.", "42"),
        ("At least 42.", "42"),
        ("The answer is 42 km.", "42 m"),
    ],
)
def test_a_number_that_only_begins_a_longer_expression_is_not_the_answer(text, gold):
    assert not kept(text, answer=gold)


def test_exact_values_and_what_is_no_value():
    assert same_answer("0.5", "1/2") and not same_answer("0.333", "1/3")
    assert not same_answer("(B)", "B") and not same_answer("9**9**9", "1")
    assert final_answer("So the length is $\\sqrt2$.") == "sqrt(2)"


def test_spellings_of_one_label_are_one():
    for label in ("Positive", "positive"):
        assert kept("It is POSITIVE.", label=label, choices=("Negative", "Positive", "negative", "positive"))
    assert kept("not entailment", label="not_entailment", choices=("entailment", "not_entailment"))
    assert not kept("entailment", label="not_entailment", choices=("entailment", "not_entailment"))
    example = Example("q", "Positive", "d", label="Positive", choices=("Positive", "positive", "negative"))
    assert not is_inconsistent(example)
    assert not unsupported(example, "It is positive.")


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("Zu\u0308rich", "Z\u00fcrich"),
        ("ZÜRICH", "Zürich"),
        ("Zurich", "Zürich"),
        ("COVID\u201119", "COVID-19"),
        ("COVID–19", "COVID-19"),
        ("H₂O", "H2O"),
        ("20\u00a0minutes", "20 minutes"),
        ("soft\u00adware", "software"),
        ("１９６９", "1969"),
        ("twenty minutes", "20 minutes"),
        ("on May 12th, 1945", "12 May 1945"),
    ],
)
def test_unicode_and_other_forms_of_a_fact_are_the_same(text, fact):
    assert kept(f"It is {text}.", facts=(fact,), response=f"It is {fact}.")


@pytest.mark.parametrize(
    ("text", "label", "choices"),
    [
        ("No, the sentence is not grammatically acceptable.", "acceptable", ("acceptable", "unacceptable")),
        ("The sentiment is not positive.", "positive", MOODS),
        (
            "No, the sentence is not possible to tell based on the premise.",
            "no",
            ("yes", "no", "it is not possible to tell"),
        ),
        ("No, the answer is not 'no'.", "no", ("yes", "no", "maybe")),
        ("Positive is wrong.", "positive", MOODS),
        ("I don't think that the tone is positive.", "positive", MOODS),
        ("It is anything but positive.", "positive", MOODS),
        ("It is hard to say whether it is positive.", "positive", MOODS),
        ("It could be positive or neutral.", "positive", MOODS),
        ("Is it positive?", "positive", MOODS),
        ("Choose from: negative, neutral, positive", "positive", MOODS),
        ("While it seems positive, the label is neutral.", "positive", MOODS),
        ("There is no clear answer.", "no", ("yes", "no")),
    ],
)
def test_a_label_that_is_denied_open_asked_or_listed_is_lost(text, label, choices):
    assert not kept(text, label=label, choices=choices)


@pytest.mark.parametrize(
    ("text", "label", "choices"),
    [
        ("No, the sentence is not grammatically acceptable.", "unacceptable", ("acceptable", "unacceptable")),
        ("It is neither positive nor negative, but neutral.", "neutral", MOODS),
        ("There is no doubt that it is positive.", "positive", MOODS),
        ("It is positive rather than negative.", "positive", MOODS),
        ("Although some words are negative, it is positive overall.", "positive", MOODS),
        (
            "It is impossible to tell.",
            "it is not possible to tell",
            ("yes", "no", "it is not possible to tell"),
        ),
        ("Positive? No, the news is negative.", "negative", MOODS),
        ("El sentimiento no es negativo, sino positivo.", "positivo", ("negativo", "neutral", "positivo")),
    ],
)
def test_negation_of_something_else_does_not_cost_the_label(text, label, choices):
    assert kept(text, label=label, choices=choices)


@pytest.mark.parametrize(
    "text",
    [
        "```bash\npip install x\n```\n\n```python\ndef one():\n    return 1\n```",
        "1. Like this:\n\n   ```python\n   def one():\n       return 1\n   ```\n",
        "~~~py\ndef one():\n    return 1\n~~~",
        "```text\n1\n```\n```\ndef one():\n    return 1\n```",
        '```{.python title="a"}\ndef one():\n    return 1',
        "It returns one.\n\ndef one():\n    return 1\n\nThat is all.",
        "> ```python\n> def one():\n>     return 1\n> ```",
        "```python\r\ndef one():\r\n    return 1\r\n```",
    ],
)
def test_the_program_is_found_by_language_indentation_and_between_sentences(text):
    assert ast.dump(ast.parse(extract_code(text))) == ast.dump(ast.parse("def one():\n    return 1\n"))


def test_blocks_that_need_each_other_are_run_together_and_a_body_keeps_its_blanks():
    text = dedent("""\
        ```python
        def base():
            return 1
        ```
        and
        ```python
        def one():
            return base()
        ```""")
    assert kept(text, tests="assert one() == 1")
    body = "    m = 1\n    return m"
    assert extract_code(body) == body
    assert extract_code(f"```python\n{body}\n```") == f"{body}\n"
