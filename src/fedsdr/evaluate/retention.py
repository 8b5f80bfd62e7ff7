"""The cost of tuning: tasks that the base model is good at, asked of both models, question by question.

Input: a model, and the source of the questions. Output: for each task the values of the base and of the tuned
model, and the mean of their differences over the questions, with its 95 % interval.

- Plain text, as in lm-eval's own tasks, zero-shot and without a chat template: the likeliest of several
endings
  (`acc`; `acc_norm`: log p per character), whether the last word is the greedy one (LAMBADA), and the loss of
  whole articles (WikiText, nats per word: sum of -log p over sum of words, the log of lm-eval's word
  perplexity).
- MMLU, BBH, CRASS and DROP as conversations, by `evaluate.benchmarks`.

The base model's answers are cached by model, task, questions and batch size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fedsdr import __version__
from fedsdr.data.checks import rules
from fedsdr.data.files import Row, file_rows
from fedsdr.errors import UserError
from fedsdr.evaluate import extraction
from fedsdr.evaluate.benchmark_tasks import from_folder, from_hub
from fedsdr.evaluate.benchmarks import MAX_NEW_TOKENS, ask, require_harness, sample, ways_to_ask
from fedsdr.model.adapters import LoraModel
from fedsdr.model.download import cache_folder
from fedsdr.progress import say, within
from fedsdr.rows import Adapter
from fedsdr.seeds import seed_for
from fedsdr.stats import mean_interval, paired, paired_share
from fedsdr.storage import Event, content_hash, read_json, write_json

Values = dict[str, list[float]]
"""Metric -> value of each question; "loss" comes with "num_words", the weights of its mean."""

MOST = 500
"""Default limit on the questions of a task."""
FOLDER = "eval/retention"
"""Place of the files of `TEXTS` in a data folder."""


@dataclass(frozen=True)
class TextTask:
    """A task on plain text."""

    of_hub: str
    """Its name in lm-eval."""
    keys: tuple[str, ...]
    """Required keys of a row; `gold` is an index into the list under the second key."""
    config: Mapping[str, Any]
    """lm-eval's config for a row of the file."""
    metric: str = "acc"


_ENDING = {"output_type": "multiple_choice", "doc_to_text": "query", "doc_to_choice": "choices",
           "doc_to_target": "gold"}  # fmt: skip
_ANSWER = _ENDING | {"doc_to_text": lambda row: f"Question: {row['query']}\nAnswer:"}
_BEGINNING = _ENDING | {"doc_to_text": "gold", "doc_to_choice": "contexts", "doc_to_target": "continuation"}
_PAIR = _ENDING | {"doc_to_text": "", "doc_to_choice": lambda row: [row["good"], row["bad"]],
                   "doc_to_target": 0, "target_delimiter": ""}  # fmt: skip
_LAST_WORD = {"output_type": "loglikelihood", "doc_to_text": "context",
              "doc_to_target": lambda row: f" {row['continuation']}"}  # fmt: skip
_ARTICLE = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text"}
_KEYS = ("query", "choices", "gold")

TEXTS: Mapping[str, TextTask] = {
    "hellaswag": TextTask("hellaswag", _KEYS, _ENDING, "acc_norm"),
    "piqa": TextTask("piqa", _KEYS, _ANSWER, "acc_norm"),
    "arc_easy": TextTask("arc_easy", _KEYS, _ANSWER, "acc_norm"),
    "openbook_qa": TextTask("openbookqa", _KEYS, _ENDING, "acc_norm"),
    "copa": TextTask("copa", _KEYS, _ENDING),
    "winogrande": TextTask("winogrande", ("continuation", "contexts", "gold"), _BEGINNING),
    "blimp": TextTask("blimp", ("good", "bad"), _PAIR),
    "lambada": TextTask("lambada_openai", ("context", "continuation"), _LAST_WORD),
    "wikitext": TextTask("wikitext", ("text",), _ARTICLE, "word_perplexity"),
}
"""Task -> its definition; its file is named after it."""
CONVERSATIONS = ("mmlu", "bbh", "crass", "drop")
TASKS = (*TEXTS, *CONVERSATIONS)


@dataclass(frozen=True)
class Posed:
    """A task ready to be asked of the active model."""

    name: str
    content: Any
    """Everything that determines the answers, except the model."""
    where: Event
    """Origin, data set, and the subjects of its questions."""
    ask: Callable[[], Values]


def retention(
    model: LoraModel,
    active: Sequence[Adapter],
    tasks: Sequence[str] = (),
    *,
    data: Path | None,
    limit: int = MOST,
    batch_size: int = 16,
    answers: list[Event] | None = None,
) -> list[Event]:
    """Ask the base and a tuned model the same questions.

    Args:
        model: Base and adapters.
        active: Adapters that make up the tuned model.
        tasks: Names in `TASKS`; empty: all available ones.
        data: A folder with the files listed in docs/data.md; None: lm-eval's data sets on the hub.
        limit: Maximum number of questions of a task, the same sample for every model; 0: all.
        batch_size: Questions in one forward pass.
        answers: Receives one record for each task and metric, {"task", "metric", "base", "tuned"}, with the
            value of each question, in the same order for every model, and for losses "num_words".

    Returns:
        Records {"task", "metric", "num", "base", "tuned", "value" (mean of tuned - base), "low", "high",
        "origin", "dataset", "subjects"}. For several tasks of `TEXTS` except WikiText, a last record "mean"
        has the plain mean over tasks: the accuracy gained or lost.

    Raises:
        Unreachable: lm-eval or a data set is unavailable.
        UserError: A task is unknown, or was requested and has no questions; data are malformed.
    """
    require_harness()
    if unknown := [name for name in tasks if name not in TASKS]:
        raise UserError(f"tasks: unknown task {unknown[0]!r}; known ones: {', '.join(TASKS)}")
    records: list[Event] = []
    for name in tasks or TASKS:
        pose = _pose_text if name in TEXTS else _pose_conversations
        task = pose(model, name, data, limit, batch_size)
        if task is None:
            missing = f"no file of it in {data}"
            if tasks:
                raise UserError(f"tasks: {name} cannot be run: {missing}")
            say(f"  {name} is left out: {missing}")
            continue
        base = _of_base(model, task, batch_size)
        with model.inference(active), within("tuned"):
            tuned = task.ask()
        num_words = tuned.pop("num_words", None)
        for metric, values in tuned.items():
            records.append({"task": name, **_compared(metric, values, base[metric], num_words), **task.where})
            if answers is not None:
                words = {"num_words": num_words} if num_words else {}
                answers.append(
                    {"task": name, "metric": metric, "base": base[metric], "tuned": values, **words}
                )
    shares = [record for record in records if record["metric"] in ("acc", "acc_norm")]
    return [*records, _mean(shares)] if len(shares) > 1 else records


def _of_base(model: LoraModel, task: Posed, batch_size: int) -> Values:
    """The base's answers, from the cache if available."""
    reading = Path(extraction.__file__).read_text("utf-8")
    judged_by = __version__, version("lm_eval"), rules(), reading
    key = content_hash(*judged_by, model.base.fingerprint, task.name, task.content, batch_size)
    path = cache_folder() / "retention" / f"{task.name}-{key}.json"
    if not path.exists():
        with model.inference(()), within("base"):
            write_json(path, task.ask())
    found: Values = read_json(path)
    return found


def _pose_text(model: LoraModel, name: str, data: Path | None, limit: int, batch_size: int) -> Posed | None:
    from lm_eval.evaluator import evaluate

    from fedsdr.evaluate import harness

    row, metric = TEXTS[name], TEXTS[name].metric
    if data is None:
        tasks, where = harness.hub_tasks(row.of_hub), {"origin": "hub", "dataset": row.of_hub}
    elif (path := data / FOLDER / f"{name}.jsonl").exists():
        rows = _checked(name, file_rows(path))
        tasks = {name: harness.RowTask(name, rows, {**row.config, "metric_list": [{"metric": metric}]})}
        where = {"origin": "local", "dataset": f"{FOLDER}/{name}.jsonl"}
    else:
        return None
    docs = {part: task.eval_docs for part, task in tasks.items()}  # read again at each access
    places = [(part, number) for part, some in docs.items() for number in range(len(some))]
    places = sample(places, limit, seed_for(0, "retention", name))
    chosen = {part: [number for of, number in places if of == part] for part in dict(places)}

    def pose() -> Values:
        with within(name):
            result = evaluate(
                harness.TextModel(model.base, batch_size),
                {"tasks": {part: tasks[part] for part in chosen}, "groups": {}},
                samples=chosen,
                bootstrap_iters=0,
            )
        found = [answer[metric] for part in chosen for answer in result["samples"][part]]
        # For an article the harness has log p and the number of words.
        if name == "wikitext":
            return {"loss": [-log_p / num for log_p, num in found], "num_words": [num for _, num in found]}
        return {metric: found}

    return Posed(name, [docs[part][number] for part, number in places], where, pose)


def _checked(task: str, rows: Sequence[Row]) -> list[Event]:
    """Validate the rows of a file.

    Raises:
        UserError: A row lacks a key, or its `gold` is not an index into its list.
    """
    keys = TEXTS[task].keys
    for place, row in rows:
        if lacking := [key for key in keys if key not in row]:
            raise UserError(
                f"{place}: no key {lacking[0]!r}, which {task} requires; found the keys {', '.join(row)}"
            )
        if "gold" in keys and row["gold"] not in range(len(row[keys[1]])):
            raise UserError(
                f"{place}: gold = {row['gold']!r} is no index into {keys[1]}, which has {len(row[keys[1]])}"
            )
    return [{key: row[key] for key in keys} for _, row in rows]


def _pose_conversations(
    model: LoraModel, name: str, data: Path | None, limit: int, batch_size: int
) -> Posed | None:
    source = from_folder(name, data) if data else from_hub(name)
    if source is None:
        return None
    questions = sample(source.questions, limit, seed_for(0, "retention", name))
    where = {"origin": source.origin, "dataset": source.dataset,
             "subjects": sorted({question.subject for question in questions} - {""})}  # fmt: skip

    def pose() -> Values:
        found: Values = {}
        for some, config in ways_to_ask(questions, MAX_NEW_TOKENS.get(name, 0)):
            for answer in ask(model.base, name, some, config, batch_size)[1]:
                found.setdefault(answer["metric"], []).append(answer["right"])
        return found

    return Posed(name, [asdict(question) for question in questions], where, pose)


def _compared(
    metric: str, tuned: Sequence[float], base: Sequence[float], num_words: Sequence[float] | None
) -> Event:
    """A task's record: means over questions, for losses over words.

    With d_i the difference of article i, w_i its words and R = sum w_i d_i / sum w_i, the interval is
    Student's t interval of R + w_i / mean(w) (d_i - R): the delta method for a ratio of means.
    """
    means = {
        key: float(np.average(some, weights=num_words)) for key, some in (("base", base), ("tuned", tuned))
    }
    value = means["tuned"] - means["base"]
    low: float | None
    high: float | None
    if num_words:
        errors = np.divide(num_words, np.mean(num_words)) * (np.subtract(tuned, base) - value)
        found = paired((value + errors).tolist(), [0.0] * len(errors))
        low, high = (found.low, found.high) if found else (None, None)
    else:
        low, high = paired_share(tuned, base)
    return {"metric": metric, "num": len(tuned), **means, "value": value, "low": low, "high": high}


def _mean(records: Sequence[Event]) -> Event:
    num = len(records)
    low, high = mean_interval([r["value"] for r in records], [(r["low"], r["high"]) for r in records])
    means = {key: sum(record[key] for record in records) / num for key in ("base", "tuned", "value")}
    return {"task": "mean", "metric": "accuracy", "num": num, **means, "low": low, "high": high,
            "origin": "", "dataset": ", ".join(record["task"] for record in records)}  # fmt: skip
