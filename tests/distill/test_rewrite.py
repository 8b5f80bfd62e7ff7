"""Rewriting: nothing is paid for twice, nothing bad is taught, and a kill costs one batch at most."""

import json
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsdr.config import Distill, Lora, Settings
from fedsdr.data.conversation import encode, encode_prompt, prompt_turns
from fedsdr.data.examples import Example
from fedsdr.distill import rewrite as module
from fedsdr.distill.rewrite import fall_back_where_cut, rewrite, rewrite_together
from fedsdr.distill.rewriting import Rewriting
from fedsdr.distill.select import medoids
from fedsdr.federation.client_context import close_clients, open_client
from fedsdr.methods import PROMPTS
from fedsdr.model.adapters import ADAPTERS, LoraModel
from fedsdr.model.base import Base, load_base
from fedsdr.model.generation import Answer, Sampling, generate
from fedsdr.model.loss import token_losses

LABELS = ("POSITIVE", "NEGATIVE")
EXAMPLES = [
    Example(
        f"Label of text {n}?{' pad' * n}", f"It is POSITIVE {n}.", "finance", label="POSITIVE", choices=LABELS
    )
    for n in range(5)
]
THREE_PROMPTS = ("reference", "paraphrase", "turn")
GOOD = Answer("This one is POSITIVE.", True, 5)


@pytest.fixture(scope="module")
def model(tiny_settings: Callable[..., Settings]) -> LoraModel:
    """The tiny model, with adapters that would change its answers."""
    base = load_base(tiny_settings().model)
    model = LoraModel(base, Lora(rank=2))
    for name in ADAPTERS:
        model.load(name, {key: torch.ones_like(tensor) for key, tensor in model.state(name).items()})
    return model


class Teacher:
    """Stands in for `generate`: answers from a table, and remembers what it was asked."""

    def __init__(self, base: Base, answers: Callable[[str, int], Answer]) -> None:
        self.base, self.answers = base, answers
        self.batches: list[list[tuple[str, int]]] = []
        self.seeds: list[int] = []
        self.dies_at = -1

    def __call__(self, base, prompts, sampling, seeds, num_rows) -> list[Answer]:
        if len(self.batches) == self.dies_at:
            raise KeyboardInterrupt
        asked = [self.recognise(self.base.tokenizer.decode(ids)) for ids in prompts]
        self.batches.append(asked)
        self.seeds += seeds
        return [self.answers(*pair) for pair in asked]

    @staticmethod
    def recognise(text: str) -> tuple[str, int]:
        """Which rewriting prompt, and which example."""
        signs = {"reference": "### Reference answer", "paraphrase": "Add nothing", "turn": "Say that again"}
        prompt = next(name for name, sign in signs.items() if sign in text)
        return prompt, int(text.partition("It is POSITIVE ")[2][0])

    @property
    def asked(self) -> list[tuple[str, int]]:
        return [pair for batch in self.batches for pair in batch]


@pytest.fixture
def teach(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return `teach(answers)`: a teacher, and a function that rewrites with it."""

    def start(answers: Callable[[str, int], Answer] = lambda prompt, n: GOOD):
        base = model.base
        teacher = Teacher(base, answers)
        monkeypatch.setattr(module, "generate", teacher)

        def go(examples=EXAMPLES, base: Base = base, longest: int = 512, **settings) -> list[Rewriting]:
            settings = {"batch_size": 2, "prompts": THREE_PROMPTS} | settings
            other = copy(model)
            other.base = base
            return rewrite(other, examples, Distill(**settings), longest, tmp_path)

        return teacher, go

    return start


def test_without_checks_only_the_first_prompt_is_asked_and_its_words_are_taken(teach):
    wrong = Answer("This one is NEGATIVE.", True, 5)
    teacher, go = teach(lambda prompt, n: wrong)
    assert go(verify="off") == [Rewriting(wrong.text, wrong.text, "reference", "")] * 5
    assert sorted(teacher.asked) == [("reference", n) for n in range(5)]


def test_with_checks_prompts_are_tried_in_order_and_only_for_those_that_failed(teach):
    """Example n passes at prompt number n; 3 and 4 never do and are taught the true response."""

    def answers(prompt: str, n: int) -> Answer:
        number = THREE_PROMPTS.index(prompt)
        return Answer(f"Try {number}: {LABELS[number != n]}", True, 4)

    teacher, go = teach(answers)
    new = go(verify="answer", batch_size=9)
    assert [sorted(batch) for batch in teacher.batches] == [
        [("reference", n) for n in (0, 1, 2, 3, 4)],
        [("paraphrase", n) for n in (1, 2, 3, 4)],
        [("turn", n) for n in (2, 3, 4)],
    ]
    assert [(r.prompt, r.distilled) for r in new[:3]] == [
        (prompt, f"Try {n}: POSITIVE") for n, prompt in enumerate(THREE_PROMPTS)
    ]
    assert [(r.prompt, r.distilled, r.fallback) for r in new[3:]] == [
        ("", EXAMPLES[n].response, "lost label") for n in (3, 4)
    ]
    # y~ before fall-back is what the paper's FedSD would have taught: the first prompt's.
    assert [r.first for r in new] == ["Try 0: POSITIVE"] + ["Try 0: NEGATIVE"] * 4


def test_with_the_check_by_likelihood_other_prompts_are_tried_for_labels_that_are_not_the_likeliest(
    teach, monkeypatch: pytest.MonkeyPatch
):
    """Example 0 passes immediately, 1 with the second prompt, 2 never; 3 and 4 lose their label before that."""

    def answers(prompt: str, n: int) -> Answer:
        return Answer(f"Try {THREE_PROMPTS.index(prompt)} of {n}: {LABELS[n > 2]}", True, 4)

    passing = ("Try 0 of 0", "Try 1 of 1")
    monkeypatch.setattr(
        module, "express_label", lambda model, examples, texts, size: [t.startswith(passing) for t in texts]
    )
    _, go = teach(answers)
    new = go(verify="answer+likelihood", batch_size=9)
    assert [(one.prompt, one.fallback) for one in new] == [
        ("reference", ""),
        ("paraphrase", ""),
        ("", "unlikely label"),
        ("", "lost label"),
        ("", "lost label"),
    ]
    # The answers are shared with the other modes, the verdicts are not.
    assert [one.fallback for one in go(verify="answer", batch_size=9)] == ["", "", ""] + ["lost label"] * 2


def test_what_does_not_fit_is_not_shown_to_the_teacher_and_taught_as_it_is(teach):
    """One response of thousands of words in a batch of 32 would ask for many gigabytes of attention."""
    long = replace(EXAMPLES[1], response="It is POSITIVE 1" + " and so on" * 2000)
    teacher, go = teach()
    new = go(examples=[EXAMPLES[0], long, EXAMPLES[2]], verify="off")
    assert sorted(teacher.asked) == [("reference", 0), ("reference", 2)]
    assert new[1] == Rewriting(None, long.response, "", "too long")
    assert [r.distilled for r in (new[0], new[2])] == [GOOD.text] * 2
    assert go(examples=[EXAMPLES[0], long, EXAMPLES[2]], verify="off") == new  # from the cache


@pytest.mark.parametrize("verify", ["off", "answer"])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer("", True, 0), "empty"),
        (Answer("This one is POSITIVE.", False, 192), "cut off"),
        (Answer("I'm sorry, but POSITIVE.", True, 5), "refusal"),
        (Answer("The reference answer is POSITIVE.", True, 5), "self-reference"),
    ],
)
def test_what_cannot_be_taught_falls_back_to_the_true_response_and_says_why(teach, verify, answer, reason):
    """A cut-off rewriting is never taught, however good its words: the student would learn to stop early."""
    _, go = teach(lambda prompt, n: answer)
    expected = [Rewriting(answer.text, example.response, "", reason) for example in EXAMPLES]
    assert go(verify=verify) == expected


def test_words_of_the_example_itself_are_no_reference_to_the_task():
    """Went wrong once: rewritings that keep the wording of such examples fell back."""
    example = Example("Solve 3x - 9 = 0.", "We can rewrite the equation as 3x = 9.", "math")
    fault = partial(module.fault, verify="off")
    assert fault(example, Answer("Rewrite it: 3x = 9.", True, 5)) == ""
    assert fault(example, Answer("Rewrite it, as in the reference answer.", True, 5)) == "self-reference"
    asked = Example("Paraphrase the text.", "It is cold.", "general", context="Your response is awaited.")
    assert fault(asked, Answer("Paraphrase: your response is awaited.", True, 5)) == ""
    assert fault(EXAMPLES[0], Answer("Rewrite it: 3x = 9.", True, 5)) == "self-reference"


@pytest.mark.parametrize(
    ("example", "text", "reason"),
    [
        (EXAMPLES[0], "NEGATIVE", "lost label"),
        (Example("2+2?", "4", "math", answer="4"), "It is 5.", "lost answer"),
        (Example("Who?", "Ada Lovelace.", "general", facts=("Ada Lovelace",)), "Ada.", "lost facts"),
        (
            Example("f?", "def f(): return 1", "code", tests="assert f() == 1"),
            "def f(): return 2",
            "lost tests",
        ),
    ],
)
def test_each_kind_of_lost_truth_is_a_fault_with_checks_and_none_without(example, text, reason):
    answer = Answer(text, True, 3)
    assert module.fault(example, answer, "answer") == reason
    assert module.fault(example, answer, "off") == ""
    assert module.fault(example, Answer(example.response, True, 3), "answer") == ""


def test_a_second_rewriting_is_free_and_equal(teach):
    teacher, go = teach(lambda prompt, n: Answer(f"{prompt} {n}", n != 3, 4))
    first = go(verify="answer")
    num_asked = len(teacher.asked)
    assert go(verify="answer") == first
    assert len(teacher.asked) == num_asked


def test_whatever_changes_the_answers_is_rewritten_anew(teach, model):
    """And whatever does not, such as the checks or later prompts, is taken from the cache."""
    teacher, go = teach()
    go()
    for free in ({"verify": "answer"}, {"prompts": ("reference",)}):
        num_batches = len(teacher.batches)
        go(**free)
        assert len(teacher.batches) == num_batches
    base = model.base
    for paid in (
        {"temperature": 0.7},
        {"top_p": 0.9},
        {"seed": 1},
        {"max_new_tokens": 8},
        {"batch_size": 3},
        {"prompts": ("turn",)},
        {"base": replace(base, identity="another model")},
        {"base": replace(base, dtype=torch.bfloat16)},
        {"examples": [replace(EXAMPLES[0], context="more"), *EXAMPLES[1:]]},
        {"examples": EXAMPLES[:4]},
    ):
        num_batches = len(teacher.batches)
        go(**paid)
        assert len(teacher.batches) > num_batches, paid


def test_a_kill_costs_the_batch_that_was_being_written_and_no_other(teach):
    """5 examples in batches of 2: killed in the third, the third alone is asked again, in the same batch."""
    teacher, go = teach()
    whole = go(seed=5)
    plan = teacher.batches
    killed, go = teach()
    killed.dies_at = 2
    with pytest.raises(KeyboardInterrupt):
        go(seed=6)
    resumed, go = teach()
    assert go(seed=6) == whole
    assert killed.batches == plan[:2]
    assert resumed.batches == plan[2:]


def test_a_cache_torn_at_any_line_or_within_one_gives_the_same_rewritings(teach, tmp_path: Path):
    """Only whole batches count: in bfloat16 the batch that a prompt is in can change its answer."""
    teacher, go = teach(lambda prompt, n: Answer(f"answer {n}", True, n))
    whole = go()
    plan = teacher.batches
    (cache,) = tmp_path.glob("reference-*.jsonl")
    lines = cache.read_bytes().splitlines(keepends=True)
    for num_lines in range(len(lines)):
        for torn in (0, 1, len(lines[num_lines]) - 1):
            cache.write_bytes(b"".join(lines[:num_lines]) + lines[num_lines][:torn])
            teacher.batches = []
            assert go() == whole
            assert teacher.batches == plan[num_lines // 2 :]
            assert cache.read_bytes() == b"".join(lines)


def test_two_runs_that_share_a_cache_never_swap_their_answers(teach, tmp_path: Path):
    """Both began when it was empty, so both wrote the first batch: its answers must not pass for the second's."""
    _, go = teach(lambda prompt, n: Answer(f"answer {n}", True, n))
    whole = go()
    (cache,) = tmp_path.glob("reference-*.jsonl")
    lines = cache.read_text().splitlines(keepends=True)
    cache.write_text("".join(lines[:2] + lines[:2] + lines[2:]))
    assert go() == whole
    assert cache.read_text() == "".join(lines)
    assert {json.loads(line)["text"] for line in lines} == {f"answer {n}" for n in range(5)}


def test_a_seed_belongs_to_its_example_and_prompt_wherever_they_stand(teach):
    teacher, go = teach(lambda prompt, n: Answer("NEGATIVE", True, 1))
    go(verify="answer", temperature=1.0)
    seeds = dict(zip(teacher.asked, teacher.seeds, strict=True))
    assert len(set(seeds.values())) == len(seeds) == 5 * len(PROMPTS)
    again, go = teach(lambda prompt, n: Answer("NEGATIVE", True, 1))
    go(verify="answer", temperature=1.0, examples=EXAMPLES[3:0:-1])
    assert all(seeds[pair] == seed for pair, seed in zip(again.asked, again.seeds, strict=True))


def test_the_teacher_is_the_base_model_whatever_the_adapters_hold(model, tmp_path: Path):
    """As the global model is before round 1. Answers of the real model, not of the stand-in."""
    settings = Distill(max_new_tokens=8, prompts=("turn",))
    model.set(active=ADAPTERS, train=())
    new = rewrite(model, EXAMPLES, settings, 512, tmp_path / "loaded")
    for name in ADAPTERS:
        model.initialise(name, seed=0)
    assert new == rewrite(model, EXAMPLES, settings, 512, tmp_path / "zero")
    assert all(rewriting.first for rewriting in new)


def test_a_rewriting_that_loses_its_answer_at_max_length_falls_back(tiny_base: Base):
    """What is left of it would teach to stop before the answer."""
    example = Example("What is 6 * 7?", "It is 42.", "math", answer="42")
    texts = ["Because so, " * 40 + "it is 42.", "It is 42, " + "because so, " * 40, "So it is 42."]
    made = [Rewriting(text, text, "reference", "") for text in texts]
    left = fall_back_where_cut(tiny_base.tokenizer, [example] * 3, made, 128)
    assert [new.distilled for new in left] == [example.response, *texts[1:]]
    assert [new.fallback for new in left] == ["cut off", "", ""]
    assert [new.first for new in left] == texts


def test_only_the_domains_that_are_named_are_shown_to_the_teacher(teach):
    teacher, go = teach()
    mixed = [replace(example, domain="math") if n % 2 else example for n, example in enumerate(EXAMPLES)]
    new = go(mixed, only=("finance",))
    assert sorted(teacher.asked) == [("reference", n) for n in (0, 2, 4)]
    assert [rewriting.fallback for rewriting in new] == ["", "not chosen"] * 2 + [""]
    assert new[1] == Rewriting(None, EXAMPLES[1].response, "", "not chosen")
    assert new[2] == Rewriting(GOOD.text, GOOD.text, "reference", "")


def test_a_rewriting_is_taken_only_where_the_base_finds_it_likelier(teach, model):
    """To its own greedy words the base gives more than to the truth; and to words of no sense less."""
    base = model.base
    with model.inference(()):
        prompts = [encode_prompt(base.tokenizer, prompt_turns(example)) for example in EXAMPLES]
        own = generate(base, prompts, Sampling(6, 0.0, 1.0), [0] * len(prompts))
    _, go = teach(lambda prompt, n: Answer(own[n].text if n < 3 else "zq xj vw kq zx jq", True, 6))
    new = go(only="likelier", verify="off")
    with model.inference(()):
        means = [
            [sum(losses) / len(losses) for losses in token_losses(base, texts, 2)]
            for side in ("first", "response")
            for texts in [[encode(base.tokenizer, e, r.first if side == "first" else e.response, 512)
                           for e, r in zip(EXAMPLES, new, strict=True)]]
        ]  # fmt: skip
    likelier = [first < true for first, true in zip(*means, strict=True)]
    assert len(set(likelier)) == 2
    assert [rewriting.fallback for rewriting in new] == [
        "" if is_so else "not likelier" for is_so in likelier
    ]


def test_representatives_are_the_examples_nearest_to_the_middle_of_each_cluster():
    """Two clusters of nine about 0 and about 10, each with one point in its very middle; a far one stands for none."""
    offsets = np.array([[x, y] for x in (-0.2, 0.0, 0.2) for y in (-0.2, 0.0, 0.2)])
    states = np.concatenate([offsets, 10 + offsets, [[-40.0, 30.0]]]).astype(np.float32)
    middle = [n for n, offset in enumerate(offsets) if not offset.any()]
    assert medoids(states) == [middle[0], 9 + middle[0]]
    assert medoids(states[:3]) == [0, 1, 2]  # too few for a cluster


def test_representatives_follow_from_the_training_examples_and_cost_the_teacher_less(teach, monkeypatch):
    teacher, go = teach()
    monkeypatch.setattr("fedsdr.distill.select.medoids", lambda states: [1, 3] if len(states) == 5 else [])
    new = go(only="representative")
    assert sorted(teacher.asked) == [("reference", 1), ("reference", 3)]
    assert [rewriting.fallback for rewriting in new].count("not chosen") == 3


@pytest.mark.parametrize("only", [["math"], "likelier", "representative"])
def test_test_responses_are_rewritten_whatever_is_chosen_for_training(
    tiny_settings: Callable[..., Settings], only: object
):
    """So losses on rewritings are on the same texts in all runs."""

    def tests_of(**more: object) -> list[str]:
        settings = tiny_settings(**{"method": "fedsd", "data.domains": ["general"], **more})
        close_clients()
        return [new.fallback for new in open_client(settings, 0, Path(settings.run.dir)).rewritings["test"]]

    assert tests_of(**{"distill.only": only}) == tests_of()


def test_a_rewriting_that_comes_with_the_data_is_checked_and_no_model_is_asked_for_it(teach):
    given = [
        replace(EXAMPLES[0], distilled="Surely POSITIVE."),
        replace(EXAMPLES[1], distilled="Surely NEGATIVE."),
        *EXAMPLES[2:],
    ]
    teacher, go = teach()
    new = go(given, verify="answer")
    assert sorted(teacher.asked) == [("reference", n) for n in (2, 3, 4)]
    assert new[:2] == [
        Rewriting("Surely POSITIVE.", "Surely POSITIVE.", "given", ""),
        Rewriting("Surely NEGATIVE.", EXAMPLES[1].response, "", "lost label"),
    ]
    assert go(given, verify="off")[1].distilled == "Surely NEGATIVE."


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_clients_that_share_batches_get_the_rewritings_and_files_that_each_would_get_alone(
    model, tmp_path: Path, temperature: float
):
    """So a simulation, in which they do, equals a deployment, in which they cannot."""
    assert model.base.has_independent_rows
    settings = Distill(
        max_new_tokens=12,
        prompts=("reference", "turn"),
        batch_size=2,
        temperature=temperature,
        verify="answer",
    )
    clients = [EXAMPLES[:4], EXAMPLES[3:], EXAMPLES[1:2], EXAMPLES[:4]]
    together = rewrite_together(model, [(some, tmp_path / "one") for some in clients], settings, 512)
    alone = [rewrite(model, some, settings, 512, tmp_path / "other") for some in clients]
    assert together == alone
    one, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.jsonl")}
        for name in ("one", "other")
    )
    assert one == other
    assert len(one) == 3 * 2


def test_batches_are_shared_by_clients_only_where_that_changes_no_answer(
    teach, model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    teacher, _ = teach()
    settings = Distill(prompts=("reference",), batch_size=2, verify="off")
    for is_independent, sizes in ((True, [5]), (False, [2, 1, 2])):
        other = copy(model)
        other.base = replace(model.base)
        vars(other.base)["has_independent_rows"] = is_independent
        parts = [(part, tmp_path / str(is_independent)) for part in (EXAMPLES[:3], EXAMPLES[3:])]
        teacher.batches = []
        rewrite_together(other, parts, settings, 512)
        assert [len(batch) for batch in teacher.batches] == sizes
