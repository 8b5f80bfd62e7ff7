"""A cell of the study leaves numbers by example of each model, and no texts; a second call pays for nothing."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsdr.federation import client_context
from fedsdr.federation.model_cache import load_model
from fedsdr.recipe import load_settings
from fedsdr.storage import read_json, rewrite_lines

RECIPES = Path(__file__).parents[1] / "recipes"
SCRIPT = RECIPES / "study/cell.py"
TINY = ["model.name=tiny", "model.dtype=float32", "client.local_steps=2", "server.num_rounds=2"]


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    yield
    client_context.close_clients()
    load_model.cache_clear()


def load(path: Path):
    spec = importlib.util.spec_from_file_location("cell", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The script, on two domains whose training rows bring rewritings, with three prompts."""
    module = load(SCRIPT)
    monkeypatch.setattr(module, "drift_prompts", lambda: [f"Say {n}." for n in range(9)])
    for domain in ("bank", "law"):
        rows = [{"instruction": f"{domain} {n}?", "output": f"It is {domain} {n}."} for n in range(12)]
        folder = tmp_path / "data/answer" / domain
        rewrite_lines(
            folder / "train.jsonl", [{**row, "distilled": f"Yes: {row['output']}"} for row in rows[:10]]
        )
        rewrite_lines(folder / "test.jsonl", rows[10:])
    return lambda arm, seed: module.main(tmp_path / "data", tmp_path / "out", arm, seed, *TINY)


def test_a_cell_leaves_losses_and_divergences_by_example_without_texts(cell, tmp_path: Path):
    cell("fedsdr", 3)
    path = tmp_path / "out/fedsdr/seed-3/record.json"
    found = read_json(path)
    assert [(r["model"], r["round"], r["scale"]) for r in found["models"]] == [
        ("base", 0, 0.0), ("global", 2, 0.5), ("global", 2, 1.0),
        ("personalised", 2, 0.5), ("personalised", 2, 1.0),
    ]  # fmt: skip
    for record in found["models"]:
        assert {domain: len(losses) for domain, losses in record["test"].items()} == {"bank": 2, "law": 2}
    assert "It is" not in path.read_text()
    assert [len(r["kl"]) for r in found["models"][1:]] == [3] * 4
    cell("fedsdr", 3)
    again = read_json(path)
    assert json.dumps(again["models"]) == json.dumps(found["models"])


def test_the_control_is_scored_at_all_scales_and_on_validation_examples(cell, tmp_path: Path):
    cell("fedit", 0)
    models = read_json(tmp_path / "out/fedit/seed-0/record.json")["models"]
    assert [(r["round"], r["scale"]) for r in models[1:]] == [
        *((1, scale) for scale in (0.25, 0.5, 1.0, 1.5)),
        *((2, scale) for scale in (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5)),
    ]
    assert all(set(r["validation"]) == {"bank", "law"} for r in models)


@pytest.mark.parametrize("of", ["study", "beyond"])
def test_the_settings_of_every_arm_go_together(of: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(RECIPES / "study")
    arms = load(RECIPES / of / "cell.py").ARMS
    settings = [
        load_settings(RECIPES / "study/study.toml", [f"{key}={value}" for key, value in own.items()])
        for own in arms.values()
    ]
    assert len({one.model_dump_json() for one in settings}) == len(arms)
