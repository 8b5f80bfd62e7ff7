"""Standard benchmarks of one model, through lm-evaluation-harness.

Input: a model and the source of the questions. Output: one record for each task and metric.

- likelihood: share of questions whose label is the likeliest choice as the whole answer;
- strict, flexible: share of greedy answers whose result is accepted (`evaluate.extraction`);
- pass@1: share of greedy answers that are programs that pass their tests in `data.sandbox`.

A question of BBH with choices is asked in both ways. A value is the mean over questions, the weighting of
lm-eval's groups, so MMLU and BBH are not means over subjects. Its standard error is s / sqrt(n) with s^2 =
sum (x - mean)^2 / (n - 1), and covers only the draw of questions.
"""

import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from fedsdr.data.examples import Example
from fedsdr.errors import Unreachable, UserError
from fedsdr.evaluate.benchmark_tasks import FILES, Question, TaskData, from_examples, from_folder, from_hub
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import Base
from fedsdr.progress import say, within
from fedsdr.rows import Adapter
from fedsdr.seeds import seed_for
from fedsdr.storage import Event

Item = TypeVar("Item")
MAX_NEW_TOKENS: Mapping[str, int] = {"drop": 48, "bbh": 48, "humaneval": 384}
"""Length limits of answers for tasks that differ from the default, in tokens."""
DEFAULT_LENGTH = 256


def run_benchmarks(
    model: LoraModel,
    active: Sequence[Adapter],
    tasks: Sequence[str] = (),
    *,
    data: Path | Sequence[Example] | None = None,
    limit: int = 0,
    seed: int = 0,
    batch_size: int = 16,
    code_timeout: float = 5.0,
    runs_programs: bool = False,
    answers: list[Event] | None = None,
) -> list[Event]:
    """Ask one model the questions of benchmarks.

    Args:
        model: Base and adapters.
        active: Adapters that make up the model.
        tasks: Names in `benchmark_tasks.FILES`, or domains of `data`; empty: all available ones.
        data: A folder in the layout of `FILES`, examples that form one task per domain, or None: lm-eval's
            data sets on the hub.
        limit: Maximum number of questions of a task, sampled by `seed`; 0: all.
        seed: Seed of that sample.
        batch_size: Questions in one forward pass, and answers generated together.
        code_timeout: Time limit in seconds for a program written by the model.
        runs_programs: Whether tests may run; otherwise questions with tests are not asked for a program.
        answers: Receives one record for each question and metric, with the model's answer.

    Returns:
        Records {"task", "num", "metric", "value", "stderr" (None for one question), "chance" (for
        "likelihood" the mean of 1 / number of choices, otherwise None), "origin", "dataset"}; MMLU and BBH
        are followed by the same records for each subject, with "subject".

    Raises:
        Unreachable: lm-eval is missing, or a data set on the hub is unavailable.
        UserError: A task is unknown, or was requested and has no questions; data are malformed.
    """
    require_harness()
    records: list[Event] = []
    for name, source in _sources(tasks, data):
        questions = sample(source.questions, limit, seed_for(seed, "benchmark", name))
        coded = [question for question in questions if question.tests]
        if coded and not runs_programs:
            say(
                f"  {name}: {len(coded)} questions have tests, which are programs and do not run: add"
                " --run-programs if you trust the data"
            )
        longest = MAX_NEW_TOKENS.get(name, DEFAULT_LENGTH)
        ways = ways_to_ask(questions, longest, code_timeout if runs_programs else 0)
        for some, config in ways:
            with model.inference(active):
                results, found = ask(model.base, name, some, config, batch_size)
            origin = {"origin": source.origin, "dataset": source.dataset}
            records += [record | origin for record in _records(name, some, results, found)]
            if answers is not None:
                answers += found
    return records


def require_harness() -> None:
    """Import lm-eval, and suppress its warnings about intended settings.

    Raises:
        Unreachable: It is missing.
    """
    try:
        import lm_eval.evaluator  # noqa: F401
    except ImportError as error:
        raise Unreachable(f"benchmarks require lm-eval ({error}): pip install 'fedsdr[lm-eval]'") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def ways_to_ask(
    questions: Sequence[Question], max_new_tokens: int, code_timeout: float = 0
) -> list[tuple[list[Question], Event]]:
    """Group questions by the ways to ask them, each with the harness's config of the task.

    Args:
        questions: A question with choices and accepted answers is in both groups.
        max_new_tokens: Longest answer.
        code_timeout: Time limit in seconds for a program; 0: questions for a program are left out.
    """
    from fedsdr.evaluate import harness

    chosen = [q for q in questions if q.example.label and q.example.choices]
    written = [q for q in questions if q.answers]
    coded = [q for q in questions if q.tests and code_timeout]
    ways = [
        (chosen, harness.of_choices(chosen)),
        (written, harness.of_answers(written, max_new_tokens)),
        (coded, harness.of_programs(coded, max_new_tokens, code_timeout)),
    ]
    return [(some, config) for some, config in ways if some]


def ask(
    base: Base, name: str, questions: Sequence[Question], config: Event, batch_size: int
) -> tuple[Event, list[Event]]:
    """Ask questions in one way, inside `LoraModel.inference`.

    Returns:
        The harness's results of the task, and a record for each question and metric.
    """
    from lm_eval.evaluator import evaluate

    from fedsdr.evaluate import harness

    with within(name):
        result = evaluate(
            harness.HarnessModel(base, batch_size),
            {"tasks": {name: harness.QuestionTask(name, questions, config)}, "groups": {}},
            apply_chat_template=True,
            fewshot_as_multiturn=True,
        )
    return result["results"][name], [_answered(name, questions, one) for one in result["samples"][name]]


def _sources(tasks: Sequence[str], data: Path | Sequence[Example] | None) -> Iterable[tuple[str, TaskData]]:
    """Questions of every selected task, by name."""
    if data is None or isinstance(data, Path):
        known = list(FILES)
    else:
        known = sorted({example.domain for example in data})
    for name in tasks:
        if name not in known:
            raise UserError(f"tasks: unknown benchmark {name!r}; known ones: {', '.join(known)}")
    for name in tasks or known:
        source: TaskData | None
        if data is None:
            source, missing = from_hub(name), ""
        elif isinstance(data, Path):
            source = from_folder(name, data)
            missing = f"no file {data / FILES[name]}"
        else:
            source = from_examples(name, [example for example in data if example.domain == name])
            missing = "no example has a label, a final answer or tests"
        if source:
            yield name, source
        elif name in tasks:
            raise UserError(f"tasks: {name} cannot be run: {missing}")
        else:
            say(f"  {name} is left out: {missing}")


def sample(questions: Sequence[Item], limit: int, seed: int) -> list[Item]:
    """Sample at most `limit` items, keeping their order; 0: all."""
    if not limit or limit >= len(questions):
        return list(questions)
    rows = random.Random(seed).sample(range(len(questions)), limit)
    return [questions[row] for row in sorted(rows)]


# Metric and filter of the harness -> our name for the metric.
_METRICS = {
    ("acc", "none"): "likelihood",
    ("right", "strict"): "strict",
    ("right", "flexible"): "flexible",
    ("pass@1", "none"): "pass@1",
}


def _answered(name: str, questions: Sequence[Question], sample: Event) -> Event:
    """The model's answer to one question, and how one metric reads and judges it."""
    (key,) = sample["metrics"]
    question = questions[sample["doc"]["number"]]
    metric = _METRICS[key, sample["filter"]]
    record = {
        "task": name,
        "subject": question.subject,
        "metric": metric,
        "instruction": question.example.instruction,
        "input": question.example.context,
        "right": sample[key],
    }
    if metric == "likelihood":
        # One response for each choice: its log likelihood.
        values = [value for ((value, _),) in sample["resps"]]
        chosen = question.example.choices[values.index(max(values))]
        return record | {"chance": 1 / len(values), "answer": chosen, "accepted": [question.example.label]}
    read = sample["filtered_resps"][0] if metric in ("strict", "flexible") else ""
    given = {"answer": sample["resps"][0][0], "read": read, "accepted": list(question.answers)}
    return record | {"chance": None} | given


def _records(
    name: str, questions: Sequence[Question], results: Event, answered: Sequence[Event]
) -> list[Event]:
    """Records of one task and one way of asking: all questions, then each subject."""
    from lm_eval.api.metrics import mean, mean_stderr

    subjects = sorted({question.subject for question in questions} - {""})
    records: list[Event] = []
    for (key, reading), metric in _METRICS.items():
        rows = [record for record in answered if record["metric"] == metric]
        if not rows:
            continue
        value, stderr = results[f"{key},{reading}"], results[f"{key}_stderr,{reading}"]
        of_all = {"task": name, "num": len(rows), "metric": metric, "value": value}
        of_all["stderr"] = None if stderr == "N/A" else stderr
        records.append(of_all | {"chance": _chance(rows)})
        for subject in subjects:
            part = [record for record in rows if record["subject"] == subject]
            right = [record["right"] for record in part]
            records.append(
                {
                    "task": name,
                    "subject": subject,
                    "num": len(part),
                    "metric": metric,
                    "value": mean(right),
                    "stderr": mean_stderr(right) if len(right) > 1 else None,
                    "chance": _chance(part),
                }
            )
    return records


def _chance(rows: Sequence[Event]) -> float | None:
    """Expected score of guessing: the mean of 1 / number of choices."""
    shares = [record["chance"] for record in rows if record["chance"] is not None]
    return sum(shares) / len(shares) if shares else None
