"""Adapters to lm-evaluation-harness: a model that it can query, and tasks made of our questions.

This file imports lm-eval (`pip install 'fedsdr[lm-eval]'`) and is imported only to run benchmarks. The
harness's `evaluate` queries, filters, averages and gives standard errors; its `simple_evaluate` does the same
but sets global seeds.
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
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from fedsdr.data.batching import in_batches
from fedsdr.data.conversation import SENTINEL, answered, prompt_turns
from fedsdr.data.files import cut
from fedsdr.data.sandbox import run_python
from fedsdr.data.template import Turn, render, tokens
from fedsdr.errors import Unreachable
from fedsdr.evaluate.benchmark_tasks import Question
from fedsdr.evaluate.extraction import flexible_answer, is_accepted, program, strict_answer
from fedsdr.model.base import Base
from fedsdr.model.generation import Sampling, generate
from fedsdr.model.likelihood import TokenisedQuestion, scored_answers

Doc = dict[str, Any]


class HarnessModel(LM):
    """A base model with its active adapters, for `evaluate(..., apply_chat_template=True)`.

    Prompts are read, and whole answers are scored, in the tokens of training (`data.conversation.encode`):
    the templated conversation, end of turn included. Used inside `LoraModel.inference`.

    Args:
        base: The model, with the desired adapters active.
        batch_size: Questions in one forward pass, and answers generated together.
    """

    def __init__(self, base: Base, batch_size: int) -> None:
        super().__init__()
        self.base, self.batch_size = base, batch_size
        turns = [{"role": "user", "content": "Which?"}]
        before = self.apply_chat_template(turns)
        whole = answered(base.tokenizer, turns, before, SENTINEL)
        self.start, _, self.end = whole.removeprefix(before).partition(SENTINEL)
        """Text of the template before an answer, such as the end of thinking, and after it."""

    @property
    def tokenizer_name(self) -> str:
        """Cache key of the harness for requests; we do not use its cache."""
        return str(self.base.tokenizer.name_or_path)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Text of the turns, up to where the model's answer begins."""
        return render(self.base.tokenizer, chat_history, add_generation_prompt)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log p of each whole answer, in nats, and whether it is the greedy one.

        A prompt is read once for all its answers.
        """
        groups = groupby((request.args for request in requests), key=lambda args: args[0])
        found = self._likelihoods(
            [self._question(prompt, [answer for _, answer in group]) for prompt, group in groups]
        )
        return [value for values in found for value in values]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers, up to the end of turn, `until`, or `max_gen_toks` of the first request."""
        prompts = [self._encode(request.args[0]) for request in requests]
        limits = requests[0].args[1]
        answers = generate(self.base, prompts, Sampling(limits["max_gen_toks"]), num_rows=self.batch_size)
        texts = [answer.text for answer in answers]
        for stop in limits["until"]:
            texts = [text.split(stop)[0] for text in texts]
        return texts

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Not available: a conversation always has a prompt; see `TextModel`."""
        raise NotImplementedError

    def _question(self, prompt: str, answers: Sequence[str]) -> TokenisedQuestion:
        ids = self._encode(prompt)
        texts = [self._encode(f"{prompt}{self.start}{answer.strip()}{self.end}") for answer in answers]
        return ids, [text[len(ids) :] for text in texts]

    def _likelihoods(self, questions: Sequence[TokenisedQuestion]) -> list[list[tuple[float, bool]]]:
        def of_batch(some: list[TokenisedQuestion]) -> list[list[tuple[float, bool]]]:
            return scored_answers(self.base, some, self.batch_size)

        lengths = [len(prompt) for prompt, _ in questions]
        return in_batches(questions, lengths, self.batch_size, of_batch, "questions")

    def _encode(self, text: str) -> list[int]:
        return tokens(self.base.tokenizer, text)


class TextModel(HarnessModel):
    """The same model on plain text, without a chat template: tokenised as by lm-eval's own models.

    A text begins with the tokenizer's first special token, if it writes one. An empty prompt is that token,
    or otherwise the end of text. Texts are read in windows of at most WINDOW tokens.
    """

    WINDOW = 1024

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log p of each text, in nats; every token is predicted once, from those before it in its window."""
        width = min(self.WINDOW, self.base.model.config.max_position_embeddings)
        texts = [
            [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(self._encode(text), self._first, width, 1)
            ]
            for (text,) in (request.args for request in requests)
        ]
        found = iter(self._likelihoods([(prompt, [rest]) for text in texts for prompt, rest in text]))
        return [sum(next(found)[0][0] for _ in text) for text in texts]

    @property
    def _first(self) -> int:
        tokenizer = self.base.tokenizer
        return int(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)

    def _question(self, prompt: str, answers: Sequence[str]) -> TokenisedQuestion:
        if not prompt:
            return [self._first], [self._encode(answer) for answer in answers]
        read, stem = self.base.tokenizer, prompt.rstrip()
        ids = read(stem)["input_ids"]  # as in lm-eval: trailing white space is read with the answer
        return ids, [read(prompt + answer)["input_ids"][len(ids) :] for answer in answers]

    def _encode(self, text: str) -> list[int]:
        return list(self.base.tokenizer(text, add_special_tokens=False)["input_ids"])


class RowTask(ConfigurableTask):
    """Rows as a task of the harness.

    Args:
        name: Name of the task.
        rows: At least one, all with the same keys.
        config: How to use them.
    """

    def __init__(self, name: str, rows: Sequence[Doc], config: dict[str, Any]) -> None:
        def split(**_: Any) -> dict[str, datasets.Dataset]:
            return {"test": datasets.Dataset.from_list(list(rows))}

        of_rows = {"task": name, "custom_dataset": split, "test_split": "test", "num_fewshot": 0}
        super().__init__(config={**of_rows, **config})

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests without the harness's progress bar."""
        with contextlib.redirect_stderr(io.StringIO()):
            super().build_all_requests(**kwargs)


class QuestionTask(RowTask):
    """Questions as a task of the harness; a document is a question's number.

    Args:
        name: Name of the task.
        questions: At least one.
        config: How to use them, from `of_choices`, `of_answers` or `of_programs`.
    """

    def __init__(self, name: str, questions: Sequence[Question], config: dict[str, Any]) -> None:
        self.turns = [prompt_turns(question.example) for question in questions]
        rows = [{"number": n} for n in range(len(questions))]

        def prompt(doc: Doc) -> str:
            return self.turns[doc["number"]][-1]["content"]

        super().__init__(name, rows, {"doc_to_text": prompt, **config})

    def fewshot_context(
        self, doc: Doc, *args: Any, chat_template: Callable[[list[Turn]], str], **kwargs: Any
    ) -> str:
        """All turns of a question; the harness's own method has no place for earlier turns."""
        return chat_template(self.turns[doc["number"]])


def hub_tasks(name: str) -> dict[str, ConfigurableTask]:
    """lm-eval's own tasks of this name, with their data from the hub; several if it is a group.

    Raises:
        Unreachable: A data set is unavailable.
    """
    try:
        return dict(TaskManager().load([name])["tasks"])
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise Unreachable(f"{name}: its data set cannot be loaded: {cut(str(error), 120)}") from None


def of_choices(questions: Sequence[Question]) -> dict[str, Any]:
    """Config: the likeliest of the choices is the answer; "acc,none" is the share of correct ones."""
    return {
        "output_type": "multiple_choice",
        "doc_to_choice": lambda doc: list(questions[doc["number"]].example.choices),
        "doc_to_target": lambda doc: questions[doc["number"]].example.label,
        "metric_list": [_mean("acc")],
    }


def of_answers(questions: Sequence[Question], max_new_tokens: int) -> dict[str, Any]:
    """Config: free-form answers, read strictly and flexibly: "right,strict" and "right,flexible"."""

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
    """Config: programs that run in `data.sandbox`; "pass@1,none" is the share that passes its tests."""

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
    # Only the end of the turn ends an answer: zero-shot, the model does not continue with more questions.
    limits = {"until": [], "do_sample": False, "max_gen_toks": max_new_tokens}
    return {"output_type": "generate_until", "generation_kwargs": limits}


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}
