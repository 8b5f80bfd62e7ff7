"""lm-evaluation-harness around our models: a model that it can ask, and tasks made of our questions.

This file imports lm-eval (`pip install 'fedsdr[lm-eval]'`) and is imported where benchmarks are run, nowhere
else. The harness's `evaluate` asks, filters, averages and gives standard errors; its `simple_evaluate` does
the same but sets global seeds.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

from fedsdr.data.batching import by_length
from fedsdr.data.conversation import answered, prompt_turns
from fedsdr.data.sandbox import run_python
from fedsdr.data.template import render, tokens
from fedsdr.evaluate.benchmark_tasks import Question
from fedsdr.evaluate.extraction import flexible_answer, is_accepted, program, strict_answer
from fedsdr.model.base import Base
from fedsdr.model.generation import Sampling, stream
from fedsdr.model.likelihood import log_likelihoods
from fedsdr.progress import track

Doc = dict[str, Any]


class HarnessModel(LM):
    """A base model with the adapters that are set, for `evaluate(..., apply_chat_template=True)`.

    Prompts are read, and whole answers are scored, in the tokens of training (`data.conversation.encode`):
    the templated conversation, end of turn included. Used inside `LoraModel.inference`.

    Args:
        base: The model, with adapters set as wanted.
        batch_size: Questions in one forward pass, and answers written at a time.
    """

    def __init__(self, base: Base, batch_size: int) -> None:
        super().__init__()
        self.base, self.batch_size = base, batch_size
        turns = [{"role": "user", "content": "Which?"}]
        before = self.apply_chat_template(turns)
        whole = answered(base.tokenizer, turns, before, "fedsdr")
        self.start, _, self.end = whole.removeprefix(before).partition("fedsdr")
        """What the template writes before an answer, such as the end of thinking, and after it."""

    @property
    def tokenizer_name(self) -> str:
        """Name under which the harness would keep requests, which we do not let it."""
        return str(self.base.tokenizer.name_or_path)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Text of the turns, up to where the model's answer begins."""
        return render(self.base.tokenizer, chat_history, add_generation_prompt)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log p of each whole answer, in nats; a prompt is read once for all its answers.

        Whether an answer is the greedy one is not judged: always False.
        """
        questions = []
        for prompt, group in groupby((request.args for request in requests), key=lambda args: args[0]):
            ids = self._encode(prompt)
            texts = [self._encode(f"{prompt}{self.start}{answer.strip()}{self.end}") for _, answer in group]
            questions.append((ids, [text[len(ids) :] for text in texts]))
        plan = by_length([len(prompt) for prompt, _ in questions], self.batch_size)
        found: dict[int, list[float]] = {}
        for rows in track(plan, "questions", [len(rows) for rows in plan]):
            values = log_likelihoods(self.base, [questions[row] for row in rows], self.batch_size)
            found |= zip(rows, values, strict=True)
        return [(value, False) for row in range(len(questions)) for value in found[row]]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers, to the end of the turn or `max_gen_toks` of the first request, cut at `until`."""
        prompts = [self._encode(request.args[0]) for request in requests]
        limits = requests[0].args[1]
        written = stream(self.base, prompts, Sampling(limits["max_gen_toks"]), (), self.batch_size)
        found = {row: answer.text for row, answer in track(written, "answers", [1] * len(prompts))}
        for stop in limits["until"]:
            found = {row: text.split(stop)[0] for row, text in found.items()}
        return [found[row] for row in range(len(prompts))]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """No task here asks for it."""
        raise NotImplementedError

    def _encode(self, text: str) -> list[int]:
        return tokens(self.base.tokenizer, text)


class QuestionTask(ConfigurableTask):
    """Questions as a task of the harness; a document is a question's number and its system prompt.

    Args:
        name: Name of the task.
        questions: At least one.
        config: What to do with them, by `of_choices`, `of_answers` or `of_programs`.
    """

    def __init__(self, name: str, questions: Sequence[Question], config: dict[str, Any]) -> None:
        rows = [{"number": n, "system": q.example.system} for n, q in enumerate(questions)]
        super().__init__(
            config={
                "task": name,
                "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
                "test_split": "test",
                "num_fewshot": 0,
                "description": "system",
                "doc_to_text": lambda doc: prompt_turns(questions[doc["number"]].example)[-1]["content"],
                **config,
            }
        )

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests without the harness's bar of progress."""
        with contextlib.redirect_stderr(io.StringIO()):
            super().build_all_requests(**kwargs)


def of_choices(questions: Sequence[Question]) -> dict[str, Any]:
    """Config: the likeliest of the choices is the answer; "acc,none" is the share of right ones."""
    return {
        "output_type": "multiple_choice",
        "doc_to_choice": lambda doc: list(questions[doc["number"]].example.choices),
        "doc_to_target": lambda doc: questions[doc["number"]].example.label,
        "metric_list": [_mean("acc")],
    }


def of_answers(questions: Sequence[Question], max_new_tokens: int) -> dict[str, Any]:
    """Config: answers in free words, read strictly and flexibly: "right,strict" and "right,flexible"."""

    def reads(how: Callable[[Question, str], str]) -> list[dict[str, Any]]:
        def read(answers: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[str]:
            return [how(questions[doc["number"]], given) for (given,), doc in zip(answers, docs, strict=True)]

        return [{"function": "custom", "filter_fn": read}]

    def strict(question: Question, text: str) -> str:
        return strict_answer(text, question.answers)

    def flexible(question: Question, text: str) -> str:
        return flexible_answer(text, question.answers, question.example.choices)

    return {
        **_written(max_new_tokens),
        "doc_to_target": lambda doc: questions[doc["number"]].answers[0],
        "filter_list": [
            {"name": "strict", "filter": reads(strict)},
            {"name": "flexible", "filter": reads(flexible)},
        ],
        "process_results": lambda doc, given: {
            "right": float(is_accepted(given[0], questions[doc["number"]].answers))
        },
        "metric_list": [_mean("right")],
    }


def of_programs(questions: Sequence[Question], max_new_tokens: int, timeout: float) -> dict[str, Any]:
    """Config: programs that run in `data.sandbox`; "pass@1,none" is the share that pass their tests."""

    def passes(doc: Doc, answers: Sequence[str]) -> dict[str, float]:
        question = questions[doc["number"]]
        source = program(answers[0], question.example.context, question.entry_point, question.tests)
        return {"pass@1": float(run_python(source, timeout))}

    return {
        **_written(max_new_tokens),
        "doc_to_target": lambda doc: questions[doc["number"]].example.response,
        "process_results": passes,
        "metric_list": [_mean("pass@1")],
    }


def _written(max_new_tokens: int) -> dict[str, Any]:
    # The end of the turn ends an answer: there are no further questions that the model would go on with.
    limits = {"until": [], "do_sample": False, "max_gen_toks": max_new_tokens}
    return {"output_type": "generate_until", "generation_kwargs": limits}


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}
