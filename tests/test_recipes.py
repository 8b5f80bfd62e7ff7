"""Every recipe is read, and runs from end to end on a tiny model, with its own data or a user's."""

import json
from pathlib import Path

import pytest

import fedsdr

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))
TINY = ("run.threads=1", "model.name=tiny", "model.dtype=float32", "model.max_length=384", "client.local_steps=2", "client.batch_size=2",
        "server.num_rounds=1", "distill.max_new_tokens=4", "eval.max_new_tokens=4")  # fmt: skip


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative folders of a recipe, such as its cache, are made here."""
    monkeypatch.chdir(tmp_path)


def test_the_smoke_recipe_runs_with_everything_on(tmp_path: Path):
    settings = fedsdr.load_settings(FOLDER / "smoke.toml", [f"run.dir={tmp_path / 'smoke'}"])
    assert (settings.method, settings.distill.verify, settings.server.num_rounds) == ("fedsdr", "answer", 2)
    result = fedsdr.run(settings)
    assert set(result.final) == {"global", "personalised"}
    assert set(result.final["global"]) == {"code", "finance", "general", "math", "medicine", "mean"}
    assert len(list((result.folder / "clients").iterdir())) == 3
    assert result.adapter.name == "round-0002"
    assert result.report.is_file()


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_every_recipe_takes_a_users_data_and_runs(recipe: Path, tmp_path: Path):
    for domain in ("law", "tax"):
        for part, num in (("train", 3), ("test", 2)):
            rows = [{"instruction": f"{domain} {part} {n}?", "output": f"It is {n}."} for n in range(num)]
            path = tmp_path / "data" / domain / f"{part}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = fedsdr.run(fedsdr.load_settings(recipe, [f"data.root={tmp_path / 'data'}", *TINY]))
    assert {"law", "tax"} <= set(result.final["global"])
    assert result.folder.parts[0] == "runs"


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_the_header_of_a_recipe_holds_its_command(recipe: Path):
    assert f"fedsdr run recipes/{name_of(recipe)}" in recipe.read_text()
