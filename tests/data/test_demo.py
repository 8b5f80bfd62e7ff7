import hashlib
import json
import re
from collections import Counter

import pytest
from tests.built_in import demo_data

from fedsdr.config import Data
from fedsdr.data.checks import (
    find_label,
    is_checkable,
    is_refusal,
    is_self_referring,
    lost,
    num_words,
    unsupported,
)
from fedsdr.data.examples import Example, as_record
from fedsdr.data.sandbox import run_python
from fedsdr.data.sources import BUILT_IN, load_domains
from tools import demo_data as maker

DATA = demo_data()
ALL = {domain: train + test for domain, (train, test) in DATA.items()}
SEEDS = (0, 1, 2)
DOMAINS = ("code", "finance", "general", "math", "medicine")
# Words of a response, at least and at most: each domain has its own voice.
LENGTHS = {"finance": (1, 1), "math": (20, 50), "code": (15, 60), "general": (15, 40), "medicine": (25, 60)}

# Changes when the built-in data change on purpose: then say so in CHANGELOG.md, as results change too.
HASH = "82734866aa49414d569500e893a32a5dc3a200b66e978a206933284916576688"


def _hash(data):
    plain = {k: [[as_record(e) for e in part] for part in parts] for k, parts in data.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _prompt_words(example):
    return frozenset(re.findall(r"\w+", f"{example.instruction} {example.context}".lower()))


def test_shipped_data_are_those_that_results_were_measured_on():
    assert _hash(DATA) == HASH


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of the data made again, by seed."""
    folder = tmp_path_factory.mktemp("made")
    for seed in SEEDS:
        maker.write(folder / str(seed), seed)
    return folder


def test_making_the_data_again_gives_the_shipped_bytes(made):
    shipped, again = (
        {path.relative_to(folder): path.read_bytes() for path in folder.glob("*/*/*.jsonl")}
        for folder in (BUILT_IN, made / "0")
    )
    assert len(shipped) == 2 * (5 + 3)
    assert again == shipped


@pytest.mark.parametrize("kind", ["domains", "disputed"])
def test_other_seeds_make_other_data_that_a_run_can_read(made, kind):
    first, other = (load_domains(Data(root=str(made / seed / kind))) for seed in ("0", "1"))
    assert first == load_domains(Data(built_in=kind))
    assert all(other[domain] != first[domain] for domain in first)


def test_five_domains_with_enough_examples():
    assert tuple(DATA) == DOMAINS
    for domain, (train, test) in DATA.items():
        assert len(train) >= 240
        assert len(test) >= 60
        assert all(example.domain == domain for example in train + test)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_test_prompt_is_a_near_copy_of_a_training_prompt(made, seed):
    for domain in load_domains(Data(root=str(made / str(seed) / "domains"))).values():
        train, test = ([record.example for record in part] for part in (domain.train, domain.test))
        prompts = [(example.instruction, example.context) for example in train + test]
        assert len(set(prompts)) == len(prompts)
        known = [_prompt_words(example) for example in train]
        for words in map(_prompt_words, test):
            assert max(len(words & other) / len(words | other) for other in known) < 0.8


@pytest.mark.parametrize("part", [0, 1], ids=["train", "test"])
def test_labels_are_balanced(part):
    counts = Counter(example.label for example in DATA["finance"][part])
    assert set(counts) == {"negative", "neutral", "positive"}
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize("domain", ["finance", "general", "math", "medicine"])
def test_every_response_keeps_its_own_ground_truth(domain):
    for example in ALL[domain]:
        assert is_checkable(example)
        assert lost(example, example.response) == (), example


def test_every_program_passes_its_tests():
    """All in one process, each in its own namespace, since starting Python takes most of the time."""
    sources = [f"{example.response}\n\n{example.tests}\n" for example in ALL["code"]]
    assert run_python(f"for source in {sources!r}:\n    exec(source, {{}})", timeout=30)
    assert all(2 <= len(example.tests.splitlines()) <= 4 for example in ALL["code"])
    assert all(lost(example, example.response) == () for example in ALL["code"][:5])


def test_tests_of_code_notice_another_program():
    """A program that returns nothing, and one that returns its argument, fail every set of tests."""
    wrong = []
    for example in ALL["code"]:
        head = example.response.splitlines()[0]
        first = re.match(r"def \w+\((\w+)", head)[1]
        wrong += [f"{head}\n    {body}\n\n{example.tests}" for body in ("pass", f"return {first}")]
    loop = (
        "for source in sources:\n    try:\n        exec(source, {})\n"
        "    except (AssertionError, TypeError):\n        continue\n    raise ValueError(source)"
    )
    assert run_python(f"sources = {wrong!r}\n{loop}", timeout=30)


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_check_fires_on_a_true_response(domain):
    for example in ALL[domain]:
        assert not unsupported(example, example.response), example
        assert not is_refusal(example.response), example
        assert not is_self_referring(example.response), example


@pytest.mark.parametrize("domain", DOMAINS)
def test_responses_have_the_length_of_their_voice(domain):
    low, high = LENGTHS[domain]
    assert all(low <= num_words(example.response) <= high for example in ALL[domain])


@pytest.mark.parametrize("domain", ["general", "medicine", "math"])
def test_the_question_does_not_give_the_answer_away(domain):
    """A text that repeats the question must not pass: no fact stands in it, nor the label alone."""
    for example in ALL[domain]:
        for fact in example.facts:
            echo = Example(instruction="", response="", domain=domain, facts=(fact,))
            assert lost(echo, f"{example.instruction} {example.context}") == ("facts",), example


def test_a_headline_does_not_name_its_label():
    assert all(find_label(example.context, example.choices) == "" for example in ALL["finance"])


def test_arithmetic_is_right():
    """Every equation in the working of a word problem holds."""
    num_equations = 0
    for example in ALL["math"]:
        for left, right in re.findall(r"(\d[\d +x/-]*[+x/-][\d +x/-]*\d) = (\d+)", example.response):
            assert eval(left.replace("x", "*")) == int(right), example
            num_equations += 1
        assert example.response.endswith(f"The answer is {example.answer}.")
        assert int(example.answer) > 0
    assert num_equations >= len(ALL["math"])
