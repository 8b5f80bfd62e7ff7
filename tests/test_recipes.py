"""Every recipe is read, and runs from end to end on a tiny model, with its own data or a user's."""

import json
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fedsdr
from fedsdr.config import Data
from fedsdr.data.checks import lost
from fedsdr.data.sources import load_domains
from fedsdr.experiments.grid import read_grid

FOLDER = Path(__file__).parents[1] / "recipes"
GRIDS = sorted(path for path in FOLDER.glob("*.toml") if "baseline" in tomllib.loads(path.read_text()))
RECIPES = sorted(set(FOLDER.glob("**/*.toml")) - set(GRIDS))
PAPER = sorted((FOLDER / "paper").glob("*.toml"))
TINY = ("run.threads=1", "model.name=tiny", "model.dtype=float32", "model.max_length=384", "client.local_steps=2", "client.batch_size=2",
        "server.num_rounds=1", "distill.max_new_tokens=4", "eval.max_new_tokens=4")  # fmt: skip


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative folders of a recipe, such as its cache, are created here; other recipes are found next to the code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(FOLDER)


def test_the_smoke_recipe_runs_with_everything_on(tmp_path: Path):
    settings = fedsdr.load_settings(FOLDER / "smoke.toml", [f"run.dir={tmp_path / 'smoke'}"])
    assert (settings.method, settings.distill.verify, settings.server.num_rounds) == ("fedsdr", "answer", 2)
    result = fedsdr.run(settings)
    assert set(result.final) == {"global", "personalised"}
    assert set(result.final["global"]) == {"code", "finance", "general", "math", "medicine", "mean"}
    assert len(list((result.folder / "clients").iterdir())) == 3
    assert result.adapter.name == "round-0002"
    assert result.report.is_file()


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """Five small domains with labels."""
    for domain in ("bank", "law", "news", "tax", "trade"):
        for part, num in (("train", 4), ("test", 2)):
            rows = [
                {
                    "instruction": f"{domain} {part} {n}?",
                    "output": ("yes", "no")[n % 2],
                    "label": ("yes", "no")[n % 2],
                }
                for n in range(num)
            ]
            path = tmp_path / "data" / domain / f"{part}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path not in PAPER], ids=name_of)
def test_every_recipe_takes_a_users_data_and_runs(recipe: Path, stand_ins: Path):
    result = fedsdr.run(fedsdr.load_settings(recipe, [f"data.root={stand_ins}", *TINY]))
    assert {"law", "tax"} <= set(result.final["global"])
    assert result.folder.parts[0] == "runs"


def rows_of_the_paper() -> list[tuple[str, str]]:
    """Each algorithm plain and with FedSD, then FedSDR; and GLUE."""
    algorithms = ("fedavg", "fedavgm", "fedprox", "fedyogi", "fedadam", "fedadagrad")
    return [(name, method) for name in algorithms for method in ("fedit", "fedsd")] + [
        ("fedsdr", "fedsdr"),
        ("glue", "fedsdr"),
    ]


def test_every_row_of_the_papers_table_has_its_recipe():
    assert {name for name, _ in rows_of_the_paper()} == {path.stem for path in PAPER}
    for name, _ in rows_of_the_paper():
        settings = fedsdr.load_settings(FOLDER / "paper" / f"{name}.toml")
        assert settings.method == ("fedsdr" if name in ("fedsdr", "glue") else "fedsd")
        step = settings.client.drift_correction, settings.server.optimizer
        assert step == {
            "fedprox": ("fedprox", "fedavg"), "fedsdr": ("none", "fedavg"), "glue": ("none", "fedavg"),
        }.get(name, ("none", name))  # fmt: skip
        presets = [source.preset for source in settings.data.sources]
        assert name == "glue" or presets == ["fingpt", "mathinstruct", "codealpaca", "alpaca", "medalpaca"]
        assert (settings.model.quantization, settings.partition.kind) == (
            "4bit",
            "dirichlet" if name == "glue" else "domain",
        )


@pytest.mark.parametrize(("name", "method"), rows_of_the_paper())
def test_a_row_of_the_papers_table_runs(name: str, method: str, stand_ins: Path):
    """On stand-ins for the model and the five sets; GLUE's are dealt by their labels."""
    pytest.importorskip("bitsandbytes")
    small = [*TINY, f"method={method}", f"data.root={stand_ins}", "partition.min_examples=1"]
    result = fedsdr.run(fedsdr.load_settings(FOLDER / "paper" / f"{name}.toml", small))
    assert len(list((result.folder / "clients").glob("*/.data.hash"))) == 5
    before, after = (
        (result.folder / "server" / f"round-000{n}" / "adapter_model.safetensors").read_bytes()
        for n in (0, 1)
    )
    assert before != after


@pytest.mark.parametrize("task", ["sst2", "rte", "mrpc"])
def test_the_columns_of_glue_become_examples_with_words_for_labels(task: str, tmp_path: Path):
    """The stand-ins have the columns, types and names of classes of the hub's sets."""
    datasets = pytest.importorskip("datasets")
    texts, names = {
        "sst2": (["sentence"], ["negative", "positive"]),
        "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"]),
        "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"]),
    }[task]
    features = datasets.Features(
        {key: datasets.Value("string") for key in texts}
        | {"label": datasets.ClassLabel(names=names), "idx": datasets.Value("int32")}
    )
    rows = [{key: f"It {key} {n}." for key in texts} | {"label": n % 2, "idx": n} for n in range(4)]
    part = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"train": part, "validation": part}).save_to_disk(tmp_path / task)
    sources = fedsdr.load_settings(FOLDER / "paper" / "glue.toml").data.sources
    (source,) = (source for source in sources if source.domain == task)
    assert (source.hub, source.config) == ("nyu-mll/glue", task)
    source = source.model_copy(update={"hub": "", "train": str(tmp_path / task)})
    domain = load_domains(Data(sources=(source,)))[task]
    words = [name.replace("_", " ") for name in names]
    for n, record in enumerate(domain.train):
        example = record.example
        assert example.response == example.label == words[n % 2]
        assert example.choices == tuple(sorted(words))
        assert all(f"It {key} {n}." in example.instruction for key in texts)
        assert all(word in example.instruction for word in words)
        assert lost(example, example.response) == ()
    assert len(domain.test) == 4


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_the_header_of_a_recipe_holds_its_command(recipe: Path):
    assert f"fedsdr run recipes/{name_of(recipe)}" in recipe.read_text()


@pytest.mark.parametrize("path", GRIDS, ids=name_of)
def test_every_grid_is_one_that_can_be_run_and_its_header_holds_its_command(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(FOLDER.parent)  # recipes that grids begin with are named from there
    plan = read_grid(path, tmp_path)
    assert plan.runs
    assert f"fedsdr compare recipes/{name_of(path)}" in path.read_text()


def test_every_arm_beyond_the_paper_is_a_cell_of_the_study():
    """Its settings are read with those of the study; the queue that it prints names each with each seed."""
    arms = runpy.run_path(str(FOLDER / "beyond" / "cell.py"))
    for own in arms["ARMS"].values():
        words = [f"{key}={value}" for key, value in own.items()]
        settings = fedsdr.load_settings(FOLDER / "study" / "study.toml", words)
        assert settings.client.budget == "per_round"
    printed = subprocess.run(
        [sys.executable, FOLDER / "beyond" / "cell.py"], capture_output=True, text=True, check=True
    ).stdout
    assert printed.splitlines()[: len(arms["ARMS"])] == [f"{arm} 0" for arm in arms["ARMS"]]
    assert len(printed.splitlines()) == 3 * len(arms["ARMS"])
