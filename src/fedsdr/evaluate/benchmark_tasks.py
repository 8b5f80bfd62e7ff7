"""Standard benchmarks as questions: from files, from lm-eval's data sets on the hub, or from examples.

Input: the name of a task and the source of its data. Output: `Question`s, prompted as in training
(`data.conversation`), zero-shot. How a question is judged follows from its fields: choices, accepted answers,
tests.

`FILES` gives the layout of a folder (one JSON object per line with keys instruction, input, output, and
label, choices, answer, answers, test or entry_point depending on the task); rows from the hub are converted
to it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsdr.data.examples import Example
from fedsdr.data.files import Row, file_rows, hub_rows
from fedsdr.errors import UserError

Reader = Callable[[dict[str, Any]], dict[str, Any]]
"""Converts a row from the hub to the format of the files."""

LETTERS = "ABCDEFGH"
FILES: Mapping[str, str] = {
    "mmlu": "eval/mmlu/test.jsonl",
    "bbh": "eval/bbh/*.jsonl",
    "crass": "eval/crass/test.jsonl",
    "drop": "eval/drop/test.jsonl",
    "gsm8k": "domains/math/test.jsonl",
    "humaneval": "eval/humaneval/test.jsonl",
    "fpb": "domains/finance/test.jsonl",
    "pubmedqa": "eval/pubmedqa/test.jsonl",
    "medmcqa": "eval/medmcqa/test.jsonl",
    "sst2": "eval/glue/sst2_dev.jsonl",
    "rte": "eval/glue/rte_dev.jsonl",
    "mrpc": "eval/glue/mrpc_dev.jsonl",
}
"""Task -> its files in a data folder."""

HUB: Mapping[str, tuple[str, str, str]] = {
    "mmlu": ("cais/mmlu", "all", "test"),
    "bbh": ("SaylorTwift/bbh", "*", "test"),
    "crass": ("hails/bigbench", "crass_ai_zero_shot", "default"),
    "drop": ("EleutherAI/drop", "", "validation"),
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "humaneval": ("openai/openai_humaneval", "", "test"),
    "fpb": ("TheFinAI/flare-fpb", "", "test"),
    "pubmedqa": ("bigbio/pubmed_qa", "pubmed_qa_labeled_fold0_source", "test"),
    "medmcqa": ("openlifescienceai/medmcqa", "", "validation"),
    "sst2": ("nyu-mll/glue", "sst2", "validation"),
    "rte": ("nyu-mll/glue", "rte", "validation"),
    "mrpc": ("nyu-mll/glue", "mrpc", "validation"),
}
"""Task -> data set, configuration ("*": one for each subject) and split, as in lm-eval's own tasks.

Differs: MMLU's subjects are read from the configuration that contains them all; lm-eval has no task on the
Financial PhraseBank, so this uses FinBen's version, whose terms must be accepted on the hub.
"""

LABELS: Mapping[str, tuple[str, ...]] = {
    "fpb": ("negative", "neutral", "positive"),
    "pubmedqa": ("yes", "no", "maybe"),
    "sst2": ("negative", "positive"),
    "rte": ("entailment", "not_entailment"),
    "mrpc": ("not_equivalent", "equivalent"),
}
LETTERED = ("mmlu", "crass", "medmcqa")
"""Tasks whose answer is the letter of an option."""

# BBH tasks with a fixed set of answers that the prompt does not list.
BBH_LABELS = {
    "boolean_expressions": ("True", "False"),
    "sports_understanding": ("yes", "no"),
    "web_of_lies": ("Yes", "No"),
}
_BBH_OPTION = re.compile(r"^(\([A-Z]\))|^- (\S+)[ ]*$", re.MULTILINE)

INSTRUCTIONS = {
    "lettered": "The following is a multiple choice question about {}. Answer with A, B, C or D.",
    "crass": "Answer the question about the hypothetical situation.",
    "drop": "Read the passage and answer the question.",
    "humaneval": "Complete the following Python function.",
    "fpb": "What is the sentiment of this news? Please choose an answer from {negative/neutral/positive}.",
    "pubmedqa": "Read the abstract and answer the question with yes, no or maybe.",
    "sst2": "Is the sentiment of this movie review sentence negative or positive?",
    "rte": "Does the first sentence entail the second? Answer entailment or not_entailment.",
    "mrpc": "Do the two sentences mean the same? Answer equivalent or not_equivalent.",
}
"""Instructions for rows of the hub, in the wording of the files."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question and its correct answers."""

    example: Example
    """Prompt, true response; label and choices for multiple choice."""
    answers: tuple[str, ...] = ()
    """All accepted answers, for a question with a free-form answer."""
    tests: str = ""
    """Assertions on the requested program."""
    entry_point: str = ""
    """Name of the function that the prompt begins; "" if the answer is the whole program."""
    subject: str = ""
    """Subject of the question, if the task has subjects."""


@dataclass(frozen=True)
class TaskData:
    """The questions of a task and their source."""

    questions: Sequence[Question]
    origin: str
    """"local", "hub" or "examples"."""
    dataset: str
    """Files in the folder, data set and configuration, or the examples' domain."""


def from_folder(task: str, folder: Path) -> TaskData | None:
    """Read a task from a folder laid out as `FILES` says; None if its files are missing.

    Raises:
        UserError: A file is malformed, or a row lacks a key.
    """
    paths = sorted(folder.glob(FILES[task]))
    rows = [row for path in paths for row in file_rows(path)]
    if task == "fpb":  # exclude other sources of its domain
        rows = [(place, row) for place, row in rows if row.get("source") == "fpb"]
    return TaskData(_questions(task, rows), "local", FILES[task]) if rows else None


def from_hub(task: str) -> TaskData:
    """Read a task from the hub.

    Raises:
        Unreachable: The data set is unavailable.
        UserError: A row lacks a key.
    """
    name, config, split = HUB[task]
    parts = _bbh_instructions() if config == "*" else {config: ""}
    rows: list[Row] = []
    for part, instruction in parts.items():
        for place, row in hub_rows(name, split, part):
            fields = {"subject": part, "instruction": instruction} if config == "*" else {}
            rows.append((place, row | fields))
    return TaskData(_questions(task, rows, _READERS[task]), "hub", f"{name} {config}".strip())


def from_examples(domain: str, examples: Sequence[Example]) -> TaskData | None:
    """Convert a domain's examples to a task; None if none has a label, a final answer or tests."""
    questions = [
        Question(example, (example.answer,) if example.answer else (), example.tests)
        for example in examples
        if (example.label and example.choices) or example.answer or example.tests
    ]
    return TaskData(questions, "examples", domain) if questions else None


def _questions(task: str, rows: Sequence[Row], read: Reader = dict) -> list[Question]:
    questions = []
    for place, row in rows:
        try:
            question = _question(task, read(row))
        except KeyError as missing:
            raise UserError(
                f"{place}: no key {missing}, which {task} requires; found the keys {', '.join(row)}"
            ) from None
        label, choices = question.example.label, question.example.choices
        if choices and label not in choices:
            raise UserError(f"{place}: label {label!r} is not one of {task}'s choices {', '.join(choices)}")
        questions.append(question)
    return questions


def _question(task: str, row: Mapping[str, Any]) -> Question:
    """Convert a row in the format of the files to a question."""
    subject = {"mmlu": "subject", "bbh": "task"}.get(task)
    choices: Sequence[str] = ()
    answers: Sequence[str] = ()
    if task in LETTERED:
        # BIG-bench's version of CRASS has no letters.
        choices = row.get("labels") or LETTERS[: len(row["choices"])]
    elif task in LABELS:
        choices = LABELS[task]
    elif task == "bbh":
        found = ["".join(option) for option in _BBH_OPTION.findall(row["input"].partition("Options:")[2])]
        choices = BBH_LABELS.get(row["task"], found)
        # Three targets are not options (an error in the benchmark): likelihood cannot judge them.
        choices = choices if row["label"] in choices else ()
        answers = (row["label"],)
    elif task == "gsm8k":
        answers = (str(row["answer"]),)
    elif task == "drop":
        answers = tuple(map(str, row["answers"]))
    example = Example(
        row["instruction"],
        row["output"],
        task,
        context=row["input"],
        label=row["label"] if choices else "",
        choices=tuple(choices),
    )
    tests = f"{row['test']}\ncheck({row['entry_point']})" if task == "humaneval" else ""
    entry_point = row["entry_point"] if task == "humaneval" else ""
    return Question(example, tuple(answers), tests, entry_point, row[subject] if subject else "")


def _bbh_instructions() -> dict[str, str]:
    """Configurations of BBH, each with its task line in lm-eval."""
    from importlib.resources import files

    found = {}
    for file in files("lm_eval").joinpath("tasks/bbh/zeroshot").iterdir():
        text = file.read_text() if file.name.endswith(".yaml") and not file.name.startswith("_") else ""
        # Read line by line: the files contain tags that only lm-eval's own loader understands.
        keys = dict(re.findall(r'^"(dataset_name|description)": (".*")$', text, re.MULTILINE))
        if keys:
            found[json.loads(keys["dataset_name"])] = json.loads(keys["description"]).strip()
    return dict(sorted(found.items()))


def _row(instruction: str, context: str, output: str, **more: Any) -> dict[str, Any]:
    return {"instruction": instruction, "input": context, "output": output, "label": output, **more}


def _lettered(question: str, options: Sequence[str], label: str, subject: str) -> dict[str, Any]:
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    instruction = INSTRUCTIONS["lettered"].format(subject.replace("_", " "))
    return _row(instruction, "\n".join([question, *lines]), label, choices=options, subject=subject)


def _pair(task: str) -> Reader:
    """Reader for a GLUE task on two sentences; `hub_rows` replaces "_" in class names by a space."""
    return lambda row: _row(
        INSTRUCTIONS[task],
        f"Sentence 1: {row['sentence1']}\nSentence 2: {row['sentence2']}",
        row["label"].replace(" ", "_"),
    )


def _read_drop(row: dict[str, Any]) -> dict[str, Any]:
    from lm_eval.tasks.drop.utils import get_answers

    # Several spans form one answer, as in the files.
    answers = [" and ".join(answer) for answer in get_answers(row) if any(answer)]
    context = f"Passage: {row['passage']}\nQuestion: {row['question']}"
    return _row(INSTRUCTIONS["drop"], context, answers[0], answers=answers)


def _read_gsm8k(row: dict[str, Any]) -> dict[str, Any]:
    working, _, answer = re.sub(r"<<.*?>>", "", row["answer"]).partition("\n#### ")
    answer = answer.strip().replace(",", "")
    return _row(row["question"], "", f"{working}\nThe answer is {answer}.", answer=answer)


_READERS: Mapping[str, Reader] = {
    "mmlu": lambda row: _lettered(row["question"], row["choices"], row["answer"], row["subject"]),
    "medmcqa": lambda row: _lettered(
        row["question"], [row[f"op{letter}"] for letter in "abcd"], row["cop"].upper(), "medicine"
    ),
    "bbh": lambda row: _row(row["instruction"], row["input"], row["target"], task=row["subject"]),
    "crass": lambda row: _row(
        INSTRUCTIONS["crass"], row["inputs"], row["targets"][0], labels=row["multiple_choice_targets"]
    ),
    "drop": _read_drop,
    "gsm8k": _read_gsm8k,
    "humaneval": lambda row: _row(
        INSTRUCTIONS["humaneval"],
        row["prompt"],
        row["canonical_solution"],
        test=row["test"],
        entry_point=row["entry_point"],
    ),
    "fpb": lambda row: _row(INSTRUCTIONS["fpb"], row["text"], row["answer"]),
    "pubmedqa": lambda row: _row(
        INSTRUCTIONS["pubmedqa"],
        "\n".join(["Abstract: " + "\n".join(row["CONTEXTS"]), "Question: " + row["QUESTION"]]),
        row["final_decision"],
    ),
    "sst2": lambda row: _row(INSTRUCTIONS["sst2"], row["sentence"], row["label"]),
    "rte": _pair("rte"),
    "mrpc": _pair("mrpc"),
}
"""Task -> converter from a row of the hub to the format of the files."""
