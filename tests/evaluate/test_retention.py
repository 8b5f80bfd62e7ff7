"""Retention: texts are posed and counted as lm-eval does it, and both models answer the same questions."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")

import datasets
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from fedsdr.config import Lora, Settings
from fedsdr.errors import Unreachable, UserError
from fedsdr.evaluate import harness
from fedsdr.evaluate.harness import TextModel
from fedsdr.evaluate.retention import TASKS, TEXTS, retention
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base

ENDINGS = [
    {"query": f"Line {n}: the lamp went out, because", "choices": ["it was dry.", "we sang."], "gold": n % 2}
    for n in range(7)
]
ROWS = {
    **dict.fromkeys(("hellaswag", "piqa", "arc_easy", "openbook_qa", "copa"), ENDINGS),
    "winogrande": [{"contexts": ["The cup fits; the cup", "The cup fits; the box"], "continuation": "is small.",
                    "gold": 0}],
    "blimp": [{"good": "The cats sleep.", "bad": "The cats sleeps."}],
    "lambada": [{"context": "He came, she saw, he", "continuation": "came"}],
    "wikitext": [{"text": " ".join([f"The {n} lobsters are animals <unk> of the sea ."] * (n + 1))}
                 for n in range(3)],
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_settings: Callable[..., Settings]) -> LoraModel:
    """The tiny model with a shared adapter that is not zero."""
    model = LoraModel(load_base(tiny_settings().model), Lora(rank=2))
    for factor in model.parameters(["shared"]):
        torch.nn.init.normal_(factor, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))


def written(folder: Path, rows: dict[str, list[dict]]) -> Path:
    for task, some in rows.items():
        path = folder / "eval/retention" / f"{task}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


def test_texts_are_as_likely_as_lm_evals_own_model_finds_them(model: LoraModel):
    """Endings, white space at the end of a prompt, an empty prompt, and a text of several windows."""
    texts = [("One, two,", " three."), ("One, two,", " four"), ("He said: ", "yes"), ("", "The cats sleep.")]
    asked = [Instance("loglikelihood", {}, pair, 0) for pair in texts]
    long = [Instance("loglikelihood_rolling", {}, ("Sea and sand. " * 40,), 0)]
    base = model.base
    with model.inference(("shared",)), pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextModel, "WINDOW", 64)
        ours = TextModel(base, 3)
        theirs = HFLM(pretrained=base.model, tokenizer=base.tokenizer, max_length=64, batch_size=1)
        found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked)
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        rolled = ours.loglikelihood_rolling(long)
        assert rolled == pytest.approx(theirs.loglikelihood_rolling(long), rel=1e-4)


def test_values_are_those_of_a_hand_count(model: LoraModel, tmp_path: Path):
    """Shares right by the likelier ending, and by log p per character where that is the metric."""
    (copa, piqa, mean) = retention(model, ("shared",), ["copa", "piqa"], data=written(tmp_path, ROWS))

    def right(active, prompt: str, per_character: bool) -> float:
        num = 0
        with model.inference(active):
            for row in ENDINGS:
                text = prompt.format(row["query"])
                pairs = [Instance("loglikelihood", {}, (text, f" {c}"), 0) for c in row["choices"]]
                values = [value for value, _ in TextModel(model.base, 1).loglikelihood(pairs)]
                if per_character:
                    values = [v / len(c) for v, c in zip(values, row["choices"], strict=True)]
                num += values.index(max(values)) == row["gold"]
        return num / 7

    assert (copa["metric"], copa["num"]) == ("acc", 7)
    assert copa["base"] == pytest.approx(right((), "{}", False))
    assert copa["tuned"] == pytest.approx(right(("shared",), "{}", False))
    assert piqa["base"] == pytest.approx(right((), "Question: {}\nAnswer:", True))
    assert copa["value"] == pytest.approx(copa["tuned"] - copa["base"])
    assert mean["value"] == pytest.approx((copa["value"] + piqa["value"]) / 2)
    assert mean["dataset"] == "copa, piqa"


def test_an_adapter_of_zero_costs_nothing(tiny_settings: Callable[..., Settings], tmp_path: Path):
    """Every file of text is asked; no difference, but an interval that does not claim certainty."""
    untrained = LoraModel(load_base(tiny_settings().model), Lora(rank=2))
    records = retention(untrained, ("shared",), data=written(tmp_path, ROWS))
    assert [record["task"] for record in records] == [*TEXTS, "mean"]
    for record in records:
        assert record["base"] == record["tuned"] and record["value"] == 0
        if record["metric"] != "loss":
            assert record["low"] < 0 < record["high"]


def test_the_loss_is_over_all_words_of_the_articles_and_of_the_model_that_is_asked(
    model: LoraModel, tmp_path: Path
):
    (record,) = retention(model, ("shared",), ["wikitext"], data=written(tmp_path, ROWS))
    losses, words = {}, np.array([10, 20, 30])
    for name, active in (("base", ()), ("tuned", ("shared",))):
        with model.inference(active):
            asked = [Instance("loglikelihood_rolling", {}, (row["text"],), 0) for row in ROWS["wikitext"]]
            found = TextModel(model.base, 1).loglikelihood_rolling(asked)
        losses[name] = -np.array(found)
        assert record[name] == pytest.approx(losses[name].sum() / 60)
    assert record["low"] < record["value"] < record["high"]
    errors = losses["tuned"] - losses["base"] - record["value"] * words  # of a ratio, by the delta method
    half = stats.t.ppf(0.975, 2) * errors.std(ddof=1) / math.sqrt(3) / words.mean()
    assert record["high"] - record["value"] == pytest.approx(half, rel=1e-4)
    assert record["value"] != pytest.approx(0, abs=1e-3)


def test_the_base_answers_once_for_each_set_of_questions(
    model: LoraModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[bool] = []
    ask = TextModel.loglikelihood

    def counted(self, requests):
        asked.append(any(layer.is_active for layer in model.layers.values()))
        return ask(self, requests)

    monkeypatch.setattr(harness.TextModel, "loglikelihood", counted)
    data = written(tmp_path, ROWS)
    first = retention(model, ("shared",), ["copa"], data=data)
    assert retention(model, ("shared",), ["copa"], data=data) == first
    assert asked == [False, True, True]
    retention(model, ("shared",), ["copa"], data=data, limit=3)
    retention(model, ("shared",), ["copa"], data=written(tmp_path, {"copa": ENDINGS[:6]}))
    assert asked[3:] == [False, True] * 2
    # In bfloat16 an answer may depend on its batch: both models are asked in batches of one size.
    retention(model, ("shared",), ["copa"], data=written(tmp_path, ROWS), batch_size=3)
    assert asked[7:] == [False, True]


def test_a_limit_draws_the_same_questions_for_every_model(model: LoraModel, tmp_path: Path):
    records = retention(model, (), ["copa", "lambada"], data=written(tmp_path, ROWS), limit=4)
    assert [record["num"] for record in records] == [4, 1, 2]
    assert all(record["value"] == 0 for record in records)


def test_conversations_are_asked_in_all_their_ways_and_subjects_are_named(model: LoraModel, tmp_path: Path):
    """BBH: two questions with options by likelihood, all three in free text."""
    bbh = tmp_path / "eval/bbh"
    bbh.mkdir(parents=True)
    texts = [("dates", f"Day {n}?\nOptions:\n(A) 1\n(B) 2", "(B)") for n in range(2)]
    for n, (task, text, label) in enumerate([*texts, ("counting", "How many?", "8")]):
        row = {"instruction": "Answer.", "input": text, "output": label, "label": label, "task": task}
        (bbh / f"{n}.jsonl").write_text(json.dumps(row) + "\n")
    records = retention(model, ("shared",), ["bbh"], data=tmp_path)
    assert {r["metric"]: r["num"] for r in records} == {"likelihood": 2, "strict": 3, "flexible": 3}
    assert records[0]["subjects"] == ["counting", "dates"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"query": "Why?", "choices": ["a", "b"]},
            "no key 'gold', which copa requires; found the keys query",
        ),
        (
            {"query": "Why?", "choices": ["a", "b"], "gold": 2},
            "gold = 2 is no index into choices, which has 2",
        ),
    ],
)
def test_a_malformed_row_is_named_with_its_line(model: LoraModel, tmp_path: Path, row, message: str):
    with pytest.raises(UserError, match=rf"copa\.jsonl:8: {message}"):
        retention(model, (), ["copa"], data=written(tmp_path, {"copa": [*ENDINGS, row]}))


def test_a_missing_file_is_left_out_unless_it_was_named(model: LoraModel, tmp_path: Path, capsys):
    data = written(tmp_path, {"copa": ENDINGS})
    assert [record["task"] for record in retention(model, (), data=data)] == ["copa"]
    assert "mmlu is left out: no file of it" in capsys.readouterr().err
    with pytest.raises(UserError, match="tasks: piqa cannot be run: no file of it in"):
        retention(model, (), ["piqa"], data=data)
    with pytest.raises(UserError, match="unknown task 'pika'; known ones: hellaswag, piqa"):
        retention(model, (), ["pika"], data=data)


def test_lm_evals_own_task_of_the_hub_gives_what_the_file_gives(
    model: LoraModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [{"sentence": "The cup fits; the _ is small.", "option1": "cup", "option2": "box", "answer": "1"}]
    split = datasets.Dataset.from_list(rows)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, name, **_: {"train": split, "validation": split}
    )
    (hub,) = retention(model, ("shared",), ["winogrande"], data=None)
    (local,) = retention(model, ("shared",), ["winogrande"], data=written(tmp_path, ROWS))
    where = {"origin": "hub", "dataset": "winogrande"}
    assert hub == {**local, **where}


def test_without_the_hub_the_error_names_the_task(model: LoraModel, monkeypatch: pytest.MonkeyPatch):
    def fail(path, name, **_):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(Unreachable, match="copa: its data set cannot be loaded: offline"):
        retention(model, (), ["copa"], data=None)


REAL = Path(os.environ.get("FEDSDR_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.skipif(not (REAL / "eval/retention").is_dir(), reason="needs real data: set FEDSDR_DATA")
def test_real_files_are_read_and_asked(model: LoraModel):
    records = retention(model, (), data=REAL, limit=2)
    assert [r["task"] for r in records if r["metric"] not in ("strict", "flexible")] == [
        *(task for task in TASKS if task != "drop"),
        "mean",
    ]
