"""Measuring a run: each measurement is saved as soon as it is made, and missing ones have a reason."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.experiments.measure import measure
from fedsdr.experiments.measured_run import Options
from fedsdr.experiments.measurements import MEASUREMENTS
from fedsdr.federation import client_context
from fedsdr.federation.model_cache import load_model
from fedsdr.federation.run import run
from fedsdr.run_folder import RunFolder
from fedsdr.server.checkpoint import load_round, load_updates, remove_updates, save_update
from fedsdr.storage import read_json

QUICK = {
    "data.domains": ["finance", "math"],
    "data.num_train": 48,
    "data.num_test": 4,
    "server.num_rounds": 2,
    "server.keep_updates": True,
    "client.local_steps": 2,
    "eval.max_new_tokens": 2,
}
ON_TEXTS = ("alignment", "gradients", "transfer", "map")


@pytest.fixture(scope="module")
def measured(tiny_settings) -> tuple[Settings, dict]:
    """A run of fedsdr on the tiny model, with all that can be measured without other programs."""
    settings = tiny_settings(method="fedsdr", **QUICK)
    run(settings)
    made = measure(Path(settings.run.dir), [*ON_TEXTS, "consistency", "survival"], Options())
    yield settings, made
    client_context.close_clients()
    load_model.cache_clear()


def test_each_measurement_is_a_file_with_its_records_and_how_it_was_made(measured):
    settings, made = measured
    for name, measurement in made.items():
        kept = read_json(Path(settings.run.dir) / "measurements" / f"{name}.json")
        assert kept == json.loads(json.dumps(measurement))
        assert kept["records"] and kept["measure"] == name
        assert kept["command"].startswith(f"fedsdr measure {settings.run.dir}")


@pytest.mark.parametrize(("asked", "num"), [(None, 2), ("1,4", 1)])
def test_a_run_that_took_one_core_beside_others_is_measured_with_all_or_as_asked(
    tiny_settings, monkeypatch: pytest.MonkeyPatch, asked: str | None, num: int
):
    """Once a second core idled while runs of `fedsdr compare --jobs 2` were measured."""
    settings = tiny_settings(method="fedsdr", **(QUICK | {"run.threads": 1}))
    run(settings)
    load_model.cache_clear()
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)  # OpenMP's way to say it for nested threads too
    measure(Path(settings.run.dir), ["map"], Options())
    assert torch.get_num_threads() == num
    load_model.cache_clear()


def test_what_clients_sent_is_kept_and_its_mean_is_the_combined_adapter(measured):
    """n_k is equal here, and fedavg takes the mean."""
    folder = RunFolder(measured[0].run.dir)
    for number in (1, 2):
        updates = load_updates(folder, number)
        assert list(updates) == ["finance", "math"]
        aggregated, _ = load_round(folder, number, measured[0].lora.rank)
        for key, value in aggregated.items():
            np.testing.assert_allclose(value, (updates["finance"][key] + updates["math"][key]) / 2, atol=1e-6)


def test_consistency_is_told_for_every_round_and_layer(measured):
    records = measured[1]["consistency"]["records"]
    layers = {record["layer"] for record in records}
    assert "all" in layers and len(layers) > 4
    assert {record["round"] for record in records} == {1, 2}


def test_survival_begins_a_round_where_the_last_one_ended(measured):
    records = {(r["client"], r["round"]): r for r in measured[1]["survival"]["records"]}
    for client in ("finance", "math"):
        assert records[client, 2]["before"] == pytest.approx(records[client, 1]["aggregated"])


def test_a_last_round_that_is_a_mean_over_rounds_is_left_out_of_survival(tiny_settings):
    """Its adapter is not what became of that round's updates."""
    settings = tiny_settings(method="fedit", **QUICK | {"server.mean_of_rounds": 2})
    run(settings)
    made = measure(Path(settings.run.dir), ["survival"], Options())["survival"]
    assert {record["round"] for record in made["records"]} == {1}
    assert "Without the last round" in made["notes"][-1]


def test_a_run_without_rewritings_or_updates_says_what_it_lacks_when_asked_and_goes_on_when_not(
    tiny_settings, capsys: pytest.CaptureFixture[str]
):
    settings = tiny_settings(method="fedit", **QUICK | {"server.keep_updates": False})
    run(settings)
    folder = Path(settings.run.dir)
    for name, told in (("alignment", "measure a run of fedsd or fedsdr"), ("survival", "keep_updates=true")):
        with pytest.raises(UserError, match=told):
            measure(folder, [name], Options())
    made = measure(folder, [], Options())
    assert not {*ON_TEXTS, "consistency", "survival"} & made.keys()
    assert "not measured: method = fedit rewrites no training response" in capsys.readouterr().err


def test_one_measurement_that_cannot_be_made_stops_no_other_and_is_told_at_the_end(measured):
    folder = Path(measured[0].run.dir)
    page = (folder / "report.html").stat().st_mtime_ns
    before = (folder / "measurements/consistency.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="not measured: winrate: win rates require a judge"):
        measure(folder, ["winrate", "consistency"], Options())
    assert (folder / "measurements/consistency.json").stat().st_mtime_ns > before
    assert (folder / "report.html").stat().st_mtime_ns > page


def test_a_run_whose_clients_are_elsewhere_is_not_measured_on_other_data(measured, tmp_path: Path):
    """Else the built-in data would be taken for theirs."""
    folder = tmp_path / "run"
    shutil.copytree(Path(measured[0].run.dir), folder, ignore=shutil.ignore_patterns("clients"))
    with pytest.raises(UserError, match="they are on other machines"):
        measure(folder, ["alignment"], Options())
    assert not (folder / "clients").exists()


def test_an_option_that_no_measurement_asked_for_uses_is_refused(measured):
    folder = Path(measured[0].run.dir)
    with pytest.raises(UserError, match="--limit belongs to benchmarks, which is not requested"):
        measure(folder, ["consistency"], Options(limit=3))
    assert Options(limit=3).words("paradox") == []
    assert Options(limit=3).words("benchmarks") == ["--limit", "3"]


@pytest.mark.parametrize(
    ("place", "content", "name", "told"),
    [
        ("measurements/consistency.json", "{}", "survival", "is not a valid measurement file"),
        ("measurements/consistency.json", "[]", "survival", "is not a valid measurement file"),
        ("clients/math/evaluation/round-0000-global.jsonl", "{}\n", "paradox", "expected 4 answers"),
        ("server/updates/round-0001/math.safetensors", "half", "consistency", "expected tensors"),
    ],
)
def test_a_damaged_file_is_named_with_how_to_fix_it(measured, place: str, content: str, name: str, told: str):
    path = Path(measured[0].run.dir) / place
    kept = path.read_bytes()
    path.write_text(content)
    try:
        with pytest.raises(UserError, match=told) as failure:
            measure(Path(measured[0].run.dir), [name], Options())
        assert path.name in str(failure.value)
    finally:
        path.write_bytes(kept)


def test_an_unknown_measurement_is_refused_with_the_known_ones(tmp_path: Path):
    with pytest.raises(UserError, match="'alignmet' is unknown; known are alignment, "):
        measure(tmp_path, ["alignmet"], Options())
    assert "alignment" in MEASUREMENTS


def test_answers_are_judged_against_the_base_and_against_another_run(measured, tiny_settings, judge_by):
    """A judge that prefers whatever is shown first agrees with itself in no order: all are ties, but for equal
    answers, about which it is not asked."""
    settings, _ = measured
    folder = Path(settings.run.dir)
    other = tiny_settings(method="fedit", **QUICK)
    run(other)
    judge, _ = judge_by(lambda prompt: "A")
    options = Options(judge=judge.url, judge_model="rule", against=Path(other.run.dir))
    records = measure(folder, ["winrate"], options)["winrate"]["records"]
    overall = {(r["a"], r["b"]): r for r in records if r["domain"] == "all"}
    assert list(overall) == [("fedsdr", "base"), ("fedsdr", "fedit")]
    for record in overall.values():
        assert (record["num"], record["wins"], record["losses"], record["rate"]) == (8, 0, 0, 0.5)
    kept = read_json(folder / "measurements" / "winrate.json")
    assert f"--judge {judge.url} --judge-model rule --against {other.run.dir}" in kept["command"]
    with pytest.raises(UserError, match="set --judge"):
        measure(folder, ["winrate"], Options())


def test_the_paradox_is_told_of_rewritings_and_of_every_models_answers(measured):
    folder = Path(measured[0].run.dir)
    made = measure(folder, ["paradox"], Options())["paradox"]
    counts = {(r["of"], r["kind"]): r["num"] for r in made["records"] if r["domain"] == "all"}
    assert counts["rewriting", "unsupported"] == counts["true response", "unsupported"] == 2 * 48
    for model in ("base", "global", "personalised"):
        assert counts[f"{model} answer", "unsupported"] == 2 * 4
    assert counts["true paraphrase", "omission"] == 40
    assert made["verdicts"][0]["claim"].startswith("The rewrite paradox")


def test_benchmarks_ask_the_runs_own_tests_where_no_other_questions_are_given(measured):
    pytest.importorskip("lm_eval")
    folder = Path(measured[0].run.dir)
    made = measure(folder, ["benchmarks"], Options())["benchmarks"]
    found = {(r["task"], r["metric"], r["model"]): r["num"] for r in made["records"]}
    assert found["finance", "likelihood", "global"] == found["math", "strict", "base"] == 4
    assert (folder / "measurements" / "benchmark-answers.jsonl").exists()
    with pytest.raises(UserError, match="--data = nowhere is not a folder"):
        measure(folder, ["benchmarks"], Options(data="nowhere"))


def test_retention_is_the_difference_of_the_last_rounds_model_to_the_base(measured, tmp_path: Path):
    pytest.importorskip("lm_eval")
    folder, file = Path(measured[0].run.dir), tmp_path / "eval/retention/copa.jsonl"
    file.parent.mkdir(parents=True)
    rows = [{"query": f"Day {n}, so", "choices": ["it rained.", "no."], "gold": n % 2} for n in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="retention needs questions that no client has: give --data FOLDER"):
        measure(folder, ["retention"], Options())
    made = measure(folder, ["retention"], Options(data=str(tmp_path), limit=5))["retention"]
    assert made["command"] == f"fedsdr measure {folder} --only retention --data {tmp_path} --limit 5"
    (record,) = made["records"]
    assert (record["task"], record["num"]) == ("copa", 5)
    (answers,) = made["answers"]
    assert record["value"] == pytest.approx((sum(answers["tuned"]) - sum(answers["base"])) / 5)
    assert "Retention: difference to the base" in (folder / "report.html").read_text()
    with pytest.raises(UserError, match="found no file of any task"):
        measure(folder, ["retention"], Options(data=str(folder)))


def test_a_client_without_test_examples_is_trained_on_and_not_tested(tiny_settings, tmp_path: Path):
    """Once a traceback: the whole side was left out."""
    for domain, num_test in (("a", 3), ("b", 3), ("c", 3)):
        folder = tmp_path / domain
        folder.mkdir()
        for part, num in (("train", 12), ("test", num_test)):
            rows = [
                {
                    "instruction": f"{domain} {part} {n}?",
                    "output": f"{domain} is {n} and more words",
                    "client": client,
                }
                for n in range(num)
                for client in ("left", "right")
                if part == "train" or client == "left"
            ]
            (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {"data.root": tmp_path, "partition.kind": "natural", "data.domains": [], "data.num_test": 0}
    settings = tiny_settings(method="fedsd", **QUICK | more | {"data.num_train": 0})
    run(settings)
    made = measure(Path(settings.run.dir), [], Options())
    assert {r["tested_on"] for r in made["transfer"]["records"]} == {"left", "mean"}
    assert {r["client"] for r in made["survival"]["records"]} == {"left"}


def test_updates_of_a_round_that_is_made_again_are_not_mixed_with_those_of_the_first_try(tmp_path: Path):
    folder = RunFolder(tmp_path)
    save_update(folder, 1, "finance", {"a": np.zeros(1, np.float32)})
    remove_updates(folder, 1)
    save_update(folder, 1, "math", {"a": np.zeros(1, np.float32)})
    assert list(load_updates(folder, 1)) == ["math"]
