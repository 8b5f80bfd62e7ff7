"""`fedsdr probe` on the tiny model, with rewritings that are made up where the model's own would all fail."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedsdr.config import Settings
from fedsdr.data.conversation import encode
from fedsdr.distill.rewriting import Rewriting
from fedsdr.experiments import probe as probing
from fedsdr.experiments.probe import cases_sheet, judge_cases, probe, probe_sheet
from fedsdr.federation import client_context
from fedsdr.federation.model_cache import load_model, model_of
from fedsdr.model.loss import response_loss

DATA = {"data.domains": ["finance", "general"], "data.num_train": 12}


@pytest.fixture(autouse=True)
def forgotten():
    yield
    client_context.close_clients()
    load_model.cache_clear()


def written(folder: Path, domain: str, responses: list[str], num_test: int = 2) -> None:
    path = folder / domain
    path.mkdir(parents=True)
    for part, num in (("train", len(responses)), ("test", num_test)):
        rows = [{"instruction": f"{part} {n} of {domain}?", "output": responses[n % len(responses)]}
                for n in range(num)]  # fmt: skip
        (path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_nothing_is_written_and_test_examples_change_nothing(
    tiny_settings: Callable[..., Settings], tmp_path
):
    folder = tmp_path / "run"
    found = [probe(tiny_settings(**DATA, **{"data.num_test": num, "run.dir": folder}), 8) for num in (2, 5)]
    assert found[0] == found[1]
    assert [record["client"] for record in found[0]["records"]] == ["finance", "general"]
    assert all(record["num"] == 8 for record in found[0]["records"])
    assert not folder.exists()


@pytest.mark.parametrize("method", ["fedit", "centralised"])
def test_every_client_is_probed_whatever_the_method(tiny_settings: Callable[..., Settings], method: str):
    assert len(probe(tiny_settings(method=method, **DATA), 4)["records"]) == 2


def test_what_would_not_be_chosen_for_training_is_probed_too(
    tiny_settings: Callable[..., Settings], tmp_path: Path
):
    """All rewritings come with the data and pass; those of b would not be chosen."""
    for domain in ("a", "b"):
        written(tmp_path, domain, ["the sea is wide"] * 4)
        rows = [{"instruction": f"{n} of {domain}?", "output": "wide", "distilled": "it is wide"}
                for n in range(4)]  # fmt: skip
        (tmp_path / domain / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data.root": tmp_path, "data.num_train": 4, "distill.verify": "off", "distill.only": ["a"]}
    assert [record["passed"] for record in probe(tiny_settings(**settings), 4)["records"]] == [1, 1]


def test_a_rewriting_suits_if_it_passes_is_likelier_and_at_most_twice_as_long(
    tiny_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Likelier by token is made true or false for the whole of a client, by the order of its two texts."""
    texts = ("the sea is wide and green today", "qq zz xx vv kk jj ww")
    for domain in ("a", "b"):
        written(tmp_path / "data", domain, ["placeholder"])
    settings = tiny_settings(**{"data.root": tmp_path / "data", "distill.verify": "answer"})
    base = model_of(settings).base
    client = client_context.data_of(settings)[1][0].train[0]

    def loss(text: str) -> float:
        with torch.inference_mode():
            total, num = response_loss(base, [encode(base.tokenizer, client, text, 384)])
        return total.item() / num

    likely, unlikely = sorted(texts, key=loss)
    client_context.close_clients()
    for domain, response in (("c", unlikely), ("d", likely)):
        written(tmp_path / "other", domain, [response] * 8)

    def made_up(model, clients, distill, longest):
        return [of_one(examples) for examples, _ in clients]

    def of_one(examples):
        """Of eight: five as long as the true response, one three times as long, two that fell back."""
        other = {likely: unlikely, unlikely: likely}[examples[0].response]
        new = [other] * 5 + [" ".join([other] * 3)]
        return [Rewriting(text, text, "reference", "") for text in new] + [
            Rewriting("", example.response, "", "empty") for example in examples[6:]
        ]

    monkeypatch.setattr(probing, "rewrite_together", made_up)
    records = probe(tiny_settings(**{"data.root": tmp_path / "other", "data.num_train": 8}), 8)["records"]
    c, d = records
    assert c["passed"] == d["passed"] == 6 / 8
    assert c["length_ratio"] == pytest.approx((5 * 7 + 21) / (6 * 7))
    assert (c["suited"], d["suited"]) == (5 / 8, 0)
    assert (c["advice"], d["advice"]) == ("undecided", "raw")
    assert c["loss_change"] < 0 < d["loss_change"]
    assert d["loss_change_low"] < d["loss_change"] < d["loss_change_high"]


def test_what_two_clients_have_in_common_is_measured_where_it_can_be(
    tiny_settings: Callable[..., Settings], tmp_path: Path
):
    for domain, word in (("a", "sea"), ("b", "sand")):
        written(tmp_path, domain, [f"The {word} is wide and green on day {n} of all." for n in range(8)])
    settings = tiny_settings(**{"data.root": tmp_path, "data.num_train": 8})
    a, b = probe(settings, 8)["records"]
    assert a["js"] == b["js"] > 0 and -1 <= a["gradient"] == b["gradient"] <= 1
    client_context.close_clients()
    written(tmp_path, "labels", ["up"] * 8)
    of_three = {r["client"]: r for r in probe(settings, 8)["records"]}
    assert of_three["a"]["js"] == a["js"] and of_three["labels"]["js"] is None
    client_context.close_clients()
    alone = probe(tiny_settings(**{"data.root": tmp_path, "data.domains": ["a"]}), 8)
    assert alone["records"][0]["js"] is None and alone["records"][0]["gradient_change"] is None
    assert any("js was not measured: similarity is between clients" in note for note in alone["notes"])


def test_what_probe_found_becomes_a_case_when_the_outcome_is_known(
    tiny_settings: Callable[..., Settings], tmp_path: Path
):
    found = probe(tiny_settings(**DATA), 8)
    assert "finance" in [row[0] for row in probe_sheet(found).rows]
    path = tmp_path / "cases.jsonl"
    rows = [
        record | {"outcomes": [out] * 3} for record, out in zip(found["records"], (0.1, -0.1), strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = judge_cases(path)
    assert [row[0] for row in cases_sheet(judged).rows] == [r["feature"] for r in judged["records"]]
    assert judged["records"][0]["feature"] == "passed"
