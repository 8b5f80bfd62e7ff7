"""Benchmarks: the questions, their tokens, and agreement of the harness with counting by hand."""

import json
import math
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")

import lm_eval
import yaml
from lm_eval.api.instance import Instance
from tests.built_in import demo_data

from fedsdr.config import Lora, Settings
from fedsdr.data.conversation import encode, encode_prompt, prompt_turns
from fedsdr.data.examples import Example
from fedsdr.data.sandbox import run_python
from fedsdr.errors import Unreachable, UserError
from fedsdr.evaluate import benchmark_tasks, benchmarks, harness
from fedsdr.evaluate.benchmark_tasks import HUB, Question, from_folder, from_hub
from fedsdr.evaluate.benchmarks import run_benchmarks
from fedsdr.evaluate.extraction import program
from fedsdr.evaluate.harness import HarnessModel
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base
from fedsdr.model.generation import Answer
from fedsdr.model.loss import response_loss
from fedsdr.model.tiny import CHAT_TEMPLATE

NEWS = Example("Sentiment?", "up", "finance", context="Sales rose.", label="up", choices=("up", "down"))
SUM = Example("2 plus 3?", "The answer is 5.", "math", system="Be short.", answer="5")


@pytest.fixture(scope="module")
def model(tiny_settings: Callable[..., Settings]) -> LoraModel:
    base = load_base(tiny_settings().model)
    return LoraModel(base, Lora(rank=2))


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Let the model give an answer to each prompt that holds a text."""

    def set_answers(answers: dict[str, str]) -> None:
        def generate(base, prompts, sampling, num_rows) -> list[Answer]:
            asked = [base.tokenizer.decode(prompt) for prompt in prompts]
            texts = [next(answers[part] for part in answers if part in prompt) for prompt in asked]
            return [Answer(text, True, 1) for text in texts]

        monkeypatch.setattr(harness, "generate", generate)

    return set_answers


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("something was fetched from the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write(folder: Path, file: str, rows: list[dict]) -> None:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(context: str, label: str, **more) -> dict:
    return {"instruction": "Answer.", "input": context, "output": label, "label": label, **more}


OPENS = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
CLOSES = CHAT_TEMPLATE.replace(
    "\n{{ message", "\n{{ '<think></think>' if message['role'] == 'assistant' }}{{ message"
)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, OPENS, CLOSES], ids=["plain", "opens", "closes"])
@pytest.mark.parametrize(
    "example",
    [
        NEWS,
        SUM,
        replace(NEWS, system="Be short."),
        replace(NEWS, context="A <|im_end|> within."),
        replace(SUM, history=(("1 plus 1?", "2."), ("And 2 plus 2?", "4."))),
    ],
)
def test_prompts_and_answers_have_the_tokens_of_training(
    model, monkeypatch: pytest.MonkeyPatch, example, template: str
):
    """Token for token as `data.conversation` encodes them, through the harness's own templating."""
    base = model.base
    monkeypatch.setattr(base.tokenizer, "chat_template", template)
    asked: list = []

    def likelihoods(base, questions, batch_size):
        asked.extend(questions)
        return [[(0.0, False)] * len(answers) for _, answers in questions]

    def generate(base, prompts, sampling, num_rows):
        asked.extend((prompt, []) for prompt in prompts)
        return [Answer("", True, 0)] * len(prompts)

    monkeypatch.setattr(harness, "scored_answers", likelihoods)
    monkeypatch.setattr(harness, "generate", generate)
    run_benchmarks(model, (), data=[example])
    ((prompt, answers),) = asked
    assert prompt == encode_prompt(base.tokenizer, prompt_turns(example))
    expected = [encode(base.tokenizer, example, choice, 10**9) for choice in example.choices]
    assert [[*prompt, *answer] for answer in answers] == [list(c.ids) for c in expected]


def test_accuracy_is_that_of_a_hand_count(model):
    """By the loss of each choice as a conversation alone; n = 8, three choices of unlike length."""
    base = model.base
    choices = ("good", "bad", "neither of both")
    examples = [
        Example("Mood?", choices[n % 3], "mood", context=f"Line {n}.", label=choices[n % 3], choices=choices)
        for n in range(8)
    ]
    num_right = 0
    with torch.inference_mode():
        for example in examples:
            losses = {
                choice: response_loss(base, [encode(base.tokenizer, example, choice, 384)])[0].item()
                for choice in choices
            }
            num_right += min(losses, key=losses.__getitem__) == example.label
    (record,) = run_benchmarks(model, (), data=examples, batch_size=3)
    p = num_right / 8
    # s^2 = sum (x - p)^2 / (n - 1) = n p (1 - p) / (n - 1) of zeros and ones.
    assert record == {
        "task": "mood",
        "num": 8,
        "metric": "likelihood",
        "value": p,
        "stderr": pytest.approx(math.sqrt(p * (1 - p) / 7)),
        "chance": pytest.approx(1 / 3),
        "origin": "examples",
        "dataset": "mood",
    }


def test_free_answers_are_read_strictly_and_flexibly_side_by_side(model, says):
    """Four answers: right both ways, right flexibly only, wrong, wrong."""
    examples = [replace(SUM, instruction=f"Sum {n}?") for n in range(4)]
    says({"Sum 0": "The answer is 5.", "Sum 1": "2 + 3 makes 5", "Sum 2": "The answer is 6.", "Sum 3": ""})
    answers: list = []
    strict, flexible = run_benchmarks(model, (), data=examples, answers=answers)
    assert (strict["metric"], strict["value"], strict["num"]) == ("strict", 1 / 4, 4)
    assert (flexible["metric"], flexible["value"], flexible["num"]) == ("flexible", 2 / 4, 4)
    assert strict["chance"] is None and flexible["chance"] is None
    assert [record["right"] for record in answers] == [1, 0, 0, 0, 1, 1, 0, 0]
    assert [record["read"] for record in answers[4:]] == ["5", "5", "6", ""]


def test_programs_that_loop_connect_or_eat_memory_fail_and_the_rest_goes_on(
    model, says, tmp_path: Path, capsys
):
    prompt = 'def one{n}():\n    """One."""\n'
    rows = [
        row(
            prompt.format(n=n),
            "    return 1\n",
            test="def check(f):\n    assert f() == 1",
            entry_point=f"one{n}",
        )
        for n in range(5)
    ]
    write(tmp_path, "eval/humaneval/test.jsonl", rows)
    says(
        {
            "one0": "while True: pass",
            "one1": "import socket\n    socket.create_connection(('127.0.0.1', 9))\n    return 1",
            "one2": "x = bytearray(10**10)\n    return 1",
            "one3": "import os\n    os._exit(0)",
            "one4": "```python\ndef one4():\n    return 1\n```",
        }
    )
    answers: list = []
    assert run_benchmarks(model, (), ["humaneval"], data=tmp_path) == [], "programs run on consent alone"
    assert "5 questions have tests, which are programs and do not run" in capsys.readouterr().err
    (record,) = run_benchmarks(
        model, (), ["humaneval"], data=tmp_path, code_timeout=1.0, runs_programs=True, answers=answers
    )
    assert (record["metric"], record["value"], record["num"]) == ("pass@1", 1 / 5, 5)
    assert [answer["right"] for answer in answers] == [0, 0, 0, 0, 1]


def test_chance_is_the_mean_of_one_over_the_number_of_choices(model, tmp_path: Path):
    """Options are letters: three questions with two options, one with four: (3/2 + 1/4) / 4."""
    two = [row(f"Q{n}\nA. x\nB. y", "B", choices=["x", "y"]) for n in range(3)]
    write(tmp_path, "eval/crass/test.jsonl", [*two, row("Q\nA. a\n...", "D", choices=list("wxyz"))])
    (record,) = run_benchmarks(model, (), data=tmp_path)
    assert record["chance"] == pytest.approx((3 / 2 + 1 / 4) / 4)
    assert record["dataset"] == "eval/crass/test.jsonl"


def test_bbh_is_asked_in_both_ways_as_a_whole_and_by_subject(model, says, tmp_path: Path):
    """Options are found in the question; without options it is answered in free text only."""
    dates = [row(f"Date {n}?\nOptions:\n(A) 1\n(B) 2\n(C) 3", "(B)", task="dates") for n in range(3)]
    dates.append(row("Name?\nOptions:\n(A) x\n(B) y", "no option, upstream", task="dates"))
    write(tmp_path, "eval/bbh/dates.jsonl", dates)
    write(tmp_path, "eval/bbh/counting.jsonl", [row("How many?", "8", task="counting")])
    write(tmp_path, "eval/bbh/navigate.jsonl", [row("Back?\nOptions:\n- Yes\n- No", "No", task="navigate")])
    says({"Date 0": "(B)", "Date": "(B) 2", "Name": "x", "many": "The answer is 8.", "Back": "Yes"})
    records = run_benchmarks(model, (), data=tmp_path)
    found = {
        (r["metric"], r.get("subject")): (r["num"], r["value"], r["stderr"], r["chance"]) for r in records
    }
    likelihood = found["likelihood", None]
    assert (likelihood[0], likelihood[3]) == (4, pytest.approx((3 / 3 + 1 / 2) / 4))
    assert found["likelihood", "navigate"][3] == pytest.approx(1 / 2)
    assert ("likelihood", "counting") not in found
    assert found["strict", None][:2] == (6, pytest.approx(2 / 6))
    assert found["flexible", None][:2] == (6, pytest.approx(4 / 6))
    assert found["flexible", "dates"][:2] == (4, 3 / 4)
    # s^2 of 1, 1, 1, 0 is 3/4 (1 - 3/4) 4 / 3 = 1/4.
    assert found["flexible", "dates"][2] == pytest.approx(math.sqrt(1 / 4 / 4))
    assert found["strict", "counting"] == (1, 1.0, None, None)  # one answer tells no spread


def test_a_limit_draws_a_sample_by_seed_and_not_the_first_rows(model, says):
    examples = [replace(SUM, instruction=f"Sum {n:02d}?") for n in range(40)]
    says({"Sum": "5"})

    def asked(seed: int) -> list[str]:
        answers: list = []
        run_benchmarks(model, (), data=examples, limit=5, seed=seed, answers=answers)
        return [record["instruction"] for record in answers if record["metric"] == "strict"]

    first = asked(0)
    assert len(set(first)) == 5
    assert first == asked(0) == sorted(first)
    assert first != asked(1)
    assert first != [example.instruction for example in examples[:5]]


def test_the_adapters_that_are_active_are_asked(tiny_settings: Callable[..., Settings]):
    """The likelihoods are those of base + shared adapter, which is not the base."""
    base = load_base(tiny_settings().model)
    model = LoraModel(base, Lora(rank=2))
    for factor in model.parameters(["shared"]):
        torch.nn.init.normal_(factor, generator=torch.Generator().manual_seed(1))
    seen = []
    for active in ((), ("shared",)):
        with model.inference(active):
            request = Instance("loglikelihood", {}, ("Prompt", "answer"), 0)
            seen.append(HarnessModel(base, 1).loglikelihood([request])[0][0])
    assert seen[0] != pytest.approx(seen[1], rel=1e-3)


def test_built_in_data_need_neither_files_nor_network(
    model, no_network, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Domains without label, final answer or tests are reported and left out."""
    examples = [e for _, test in demo_data().values() for e in test[:3]]
    monkeypatch.setattr(benchmarks, "DEFAULT_LENGTH", 4)
    records = run_benchmarks(model, (), data=examples, code_timeout=1.0, runs_programs=True)
    by_domain: dict[str, set[str]] = {}
    for record in records:
        by_domain.setdefault(record["task"], set()).add(record["metric"])
    assert by_domain["finance"] == {"likelihood"}
    assert by_domain["math"] == {"strict", "flexible"}
    assert by_domain["code"] == {"pass@1"}
    told = capsys.readouterr().err
    for domain in {example.domain for example in examples} - by_domain.keys():
        assert f"{domain} is left out" in told


def test_missing_files_are_told_unless_the_task_was_asked_for(model, no_network, tmp_path: Path, capsys):
    write(tmp_path, "eval/glue/sst2_dev.jsonl", [row("fine", "positive"), row("poor", "negative")])
    records = run_benchmarks(model, (), data=tmp_path)
    assert [(record["task"], record["origin"]) for record in records] == [("sst2", "local")]
    assert "pubmedqa is left out: no file" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"pubmedqa cannot be run: no file .*eval/pubmedqa/test\.jsonl"):
        run_benchmarks(model, (), ["pubmedqa"], data=tmp_path)
    with pytest.raises(UserError, match="unknown benchmark 'mmul'; known ones: mmlu, bbh"):
        run_benchmarks(model, (), ["mmul"], data=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"instruction": "?", "input": "fine", "output": "positive"}, "no key 'label', which sst2 requires"),
        (row("fine", "great"), "label 'great' is not one of sst2's choices negative, positive"),
    ],
)
def test_a_malformed_row_is_told_with_its_line(model, tmp_path: Path, wrong, message):
    write(tmp_path, "eval/glue/sst2_dev.jsonl", [row("fine", "positive"), wrong])
    with pytest.raises(UserError, match=rf"sst2_dev\.jsonl:2: {message}"):
        run_benchmarks(model, (), ["sst2"], data=tmp_path)


def test_without_lm_eval_the_error_says_what_to_install(model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    with pytest.raises(Unreachable, match=r"pip install 'fedsdr\[lm-eval\]'"):
        run_benchmarks(model, (), data=[NEWS])


LM_EVAL_TASKS = {
    "mmlu": "mmlu/default/_default_template_yaml",
    "bbh": "bbh/zeroshot/_zeroshot_template_yaml",
    "crass": "bigbench/multiple_choice_template_a_yaml",
    "drop": "drop/default.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "humaneval": "humaneval/humaneval.yaml",
    "pubmedqa": "pubmedqa/pubmedqa.yaml",
    "medmcqa": "medmcqa/medmcqa.yaml",
    "sst2": "glue/sst2/default.yaml",
    "rte": "glue/rte/default.yaml",
    "mrpc": "glue/mrpc/default.yaml",
}


@pytest.mark.parametrize("task", LM_EVAL_TASKS)
def test_names_on_the_hub_are_those_of_lm_evals_own_tasks(task):
    class Loader(yaml.SafeLoader):
        """Functions are passed over."""

    Loader.add_constructor("!function", lambda loader, node: None)
    path = Path(lm_eval.__file__).parent / "tasks"
    config = yaml.load((path / LM_EVAL_TASKS[task]).read_text(), Loader)
    dataset, name, split = HUB[task]
    assert config["dataset_path"] == dataset
    assert split in (config.get("test_split"), config.get("validation_split"))
    assert "dataset_name" not in config or config["dataset_name"] == name


HUB_ROWS = {
    "mmlu": {"question": "1+1?", "subject": "abstract_algebra", "choices": list("1234"), "answer": "B"},
    "crass": {"inputs": "Had she not?", "targets": ["shut"], "multiple_choice_targets": ["open", "shut"]},
    "gsm8k": {"question": "6 times 250?", "answer": "6*250=<<6*250=1500>>1500\n#### 1,500"},
    "humaneval": {
        "prompt": 'def f():\n    """1."""\n',
        "canonical_solution": "    return 1\n",
        "test": "def check(f):\n    assert f() == 1",
        "entry_point": "f",
    },
    "fpb": {"text": "Sales rose.", "answer": "positive"},
    "pubmedqa": {"QUESTION": "Does it?", "CONTEXTS": ["It", "may."], "final_decision": "maybe"},
    "medmcqa": {"question": "Drug?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": "c"},
    "sst2": {"sentence": "fine", "label": "positive"},
    "rte": {"sentence1": "x", "sentence2": "y", "label": "not entailment"},
    "mrpc": {"sentence1": "x", "sentence2": "y", "label": "not equivalent"},
    "drop": {
        "query_id": "1",
        "passage": "p",
        "question": "q?",
        "answer": {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": ["Ann", "Bo"]},
        "validated_answers": {"number": ["2"], "date": [{"day": "", "month": "", "year": ""}], "spans": [[]]},
    },
}


def of_hub(task: str, monkeypatch: pytest.MonkeyPatch) -> Question:
    asked = []

    def rows(name, split, config):
        asked.append((name, config, split))
        return [(f"{name}, row 1", HUB_ROWS[task])]

    monkeypatch.setattr(benchmark_tasks, "hub_rows", rows)
    (question,) = from_hub(task).questions
    assert asked == [HUB[task]]
    return question


@pytest.mark.parametrize(
    ("task", "context", "label", "answers"),
    [
        ("mmlu", "1+1?\nA. 1\nB. 2\nC. 3\nD. 4", "B", ()),
        ("medmcqa", "Drug?\nA. w\nB. x\nC. y\nD. z", "C", ()),
        ("crass", "Had she not?", "shut", ()),
        ("gsm8k", "", "", ("1500",)),
        ("drop", "Passage: p\nQuestion: q?", "", ("Ann and Bo", "2")),
        ("fpb", "Sales rose.", "positive", ()),
        ("pubmedqa", "Abstract: It\nmay.\nQuestion: Does it?", "maybe", ()),
        ("sst2", "fine", "positive", ()),
        ("rte", "Sentence 1: x\nSentence 2: y", "not_entailment", ()),
        ("mrpc", "Sentence 1: x\nSentence 2: y", "not_equivalent", ()),
    ],
)
def test_rows_of_the_hub_become_questions(task, context, label, answers, monkeypatch: pytest.MonkeyPatch):
    """Rows as `hub_rows` gives them, which writes classes as their names."""
    question = of_hub(task, monkeypatch)
    assert (question.example.context, question.example.label, question.answers) == (context, label, answers)


def test_a_program_of_the_hub_passes_with_its_canonical_solution(monkeypatch: pytest.MonkeyPatch):
    question = of_hub("humaneval", monkeypatch)
    source = program(
        question.example.response, question.example.context, question.entry_point, question.tests
    )
    assert run_python(source)


def test_bbh_on_the_hub_is_27_configurations_with_their_task_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        benchmark_tasks, "hub_rows", lambda name, split, config: [(config, {"input": "Q", "target": "8"})]
    )
    questions = from_hub("bbh").questions
    assert len({question.subject for question in questions}) == 27
    (dates,) = [q for q in questions if q.subject == "date_understanding"]
    assert dates.example.instruction == "Infer the date from context."


def real_data() -> Path:
    beside = Path(__file__).parents[3] / "shared" / "data"
    return Path(os.environ.get("FEDSDR_DATA", beside))


@pytest.mark.skipif(not (real_data() / "eval").is_dir(), reason="needs the real benchmarks: set FEDSDR_DATA")
class TestRealBenchmarks:
    @pytest.mark.parametrize(
        ("task", "num", "chance"),
        [
            ("mmlu", 1140, 1 / 4),
            ("medmcqa", 500, 1 / 4),
            ("crass", 274, (230 / 3 + 44 / 4) / 274),
            ("sst2", 872, 1 / 2),
            ("rte", 277, 1 / 2),
            ("mrpc", 408, 1 / 2),
            ("fpb", 304, 1 / 3),
        ],
    )
    def test_questions_with_choices(self, task, num, chance):
        source = from_folder(task, real_data())
        assert source is not None
        sizes = [len(question.example.choices) for question in source.questions]
        assert len(sizes) == num
        assert sum(1 / size for size in sizes) / num == pytest.approx(chance)

    def test_all_of_bbh_is_there_and_only_four_tasks_and_three_rows_have_no_choices(self):
        source = from_folder("bbh", real_data())
        assert source is not None and len(source.questions) == 6511
        subjects = [q.subject for q in source.questions if not q.example.choices]
        free = {"dyck_languages", "word_sorting", "multistep_arithmetic_two", "object_counting"}
        assert {name: subjects.count(name) for name in free} == dict.fromkeys(free, 250)
        assert len(subjects) == 4 * 250 + 3

    def test_a_true_response_is_right_strictly(self):
        for task in ("gsm8k", "drop"):
            source = from_folder(task, real_data())
            assert source is not None
            wrong = [
                q for q in source.questions
                if not harness.is_accepted(harness.strict_answer(q.example.response, q.answers), q.answers)
            ]  # fmt: skip
            assert wrong == []

    def test_canonical_solutions_pass_as_bodies_and_as_whole_functions(self):
        """Every eighth of 164, to save time."""
        source = from_folder("humaneval", real_data())
        assert source is not None
        for question in source.questions[::8]:
            prompt, body = question.example.context, question.example.response
            for answer in (body.strip(), f"Here you are:\n```python\n{prompt}{body}```"):
                assert run_python(program(answer, prompt, question.entry_point, question.tests), 10)
