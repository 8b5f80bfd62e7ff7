"""A run from Python: rows and models in memory, settings as a dict, results as records."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import fedsdr
from fedsdr.errors import UserError
from fedsdr.federation import client_context
from fedsdr.federation.model_cache import load_model
from fedsdr.federation.run import run_over
from fedsdr.model.base import load_base
from fedsdr.model.tiny import build_tiny
from fedsdr.recipe import load_settings
from fedsdr.run_folder import RunFolder, read_settings

SMALL = {
    "method": "fedit",
    "model.dtype": "float32",
    "model.max_length": 384,
    "run.threads": 1,
    "lora.rank": 2,
    "client.local_steps": 1,
    "client.batch_size": 2,
    "server.num_rounds": 2,
    "eval.rewritings": False,
    "eval.max_new_tokens": 2,
}


def rows(name: str, num: int) -> list[dict[str, Any]]:
    return [
        {"instruction": f"What is {name} {n}?", "output": f"It is {name}, number {n}."} for n in range(num)
    ]


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    yield
    client_context.close_clients()
    load_model.cache_clear()


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    """Settings by dotted key, with a folder that does not exist yet."""
    return {**SMALL, "run.dir": tmp_path / "run"}


@pytest.fixture
def pair(tiny_folder: Path) -> tuple[Any, Any]:
    """A model and a tokenizer in memory."""
    return AutoModelForCausalLM.from_pretrained(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder)


def shared(folder: Path) -> bytes:
    return (folder / "server/round-0002/adapter_model.safetensors").read_bytes()


def test_rows_in_memory_give_the_run_of_the_same_rows_in_files(small, tiny_folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    data = {
        "north": (rows("north", 4), rows("a star", 2)),
        "south": (
            datasets.Dataset.from_list(rows("south", 6)),
            datasets.Dataset.from_list(rows("the sun", 2)),
        ),
    }
    result = fedsdr.run(small, data=data, model=str(tiny_folder))
    assert set(result.final["global"]) == {"north", "south", "mean"}
    assert [record["round"] for record in result.history] == [0, 1, 2]
    assert result.history[1]["client/south/num_examples"] == 6
    saved = RunFolder(result.folder).data
    assert [json.loads(line) for line in (saved / "north/train.jsonl").read_text().splitlines()] == data[
        "north"
    ][0]
    changes = {"run.dir": tmp_path / "files", "data.root": saved, "model.name": tiny_folder}
    of_files = fedsdr.run(load_settings(None, small | changes))
    assert shared(of_files.folder) == shared(result.folder)
    again = fedsdr.resume(result.folder)
    assert again.final == result.final


def test_without_test_rows_a_share_of_the_prompts_is_held_out(small, tiny_folder):
    result = fedsdr.run(
        small, data={"north": rows("north", 20), "south": rows("south", 10)}, model=str(tiny_folder)
    )
    environment = json.loads(RunFolder(result.folder).environment.read_text())
    assert environment["data"]["num_train"] == {"north": 18, "south": 9}
    assert environment["data"]["num_test"] == {"north": 2, "south": 1}


def test_rows_that_are_not_rows_or_come_twice_are_refused_by_name(small, tiny_folder):
    small["model.name"] = tiny_folder
    with pytest.raises(UserError, match=r"train row 1 of client 'north': .*set.* is not JSON serializable"):
        fedsdr.run(small, data={"north": [*rows("north", 1), {"instruction": {1, 2}}]})
    with pytest.raises(UserError, match=r"client '\.\./north' cannot name a folder"):
        fedsdr.run(small, data={"../north": rows("north", 3)})
    with pytest.raises(UserError, match=r"north/train\.jsonl:2: .*output"):
        fedsdr.run(small, data={"north": [*rows("north", 1), {"instruction": "Where?"}]})
    with pytest.raises(UserError, match=r"data was passed, but data\.root or data\.sources is set"):
        fedsdr.run(small | {"data.root": "elsewhere"}, data={"north": rows("north", 3)})
    fedsdr.run(small, data={"north": rows("north", 4)})  # the folder is still free


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"data": {}}, "data: no client; expected client id -> rows"),
        ({"data": rows("north", 2)}, "data: found a list; expected client id -> rows"),
        ({"data": {1: rows("north", 2)}}, "data: client 1 is a int; expected text"),
        ({"data": {"a": ([], [], [])}}, "client 'a': found 3 parts; expected training rows, or a pair"),
        ({"data": {"a": "rows.jsonl"}}, "train row 0 of client 'a' is a str, of a str; expected a dict"),
        ({"data": {"a": {"train": [], "test": []}}}, "is a str, of a dict; expected a dict.*ds['test']"),
        ({"data": {"a": 5}}, "train row 0 of client 'a' is a int"),
        ({"model": ("tiny",)}, "model: expected the name of a model, or a pair .*; found str"),
        ({"model": 5}, "model: expected the name of a model, or a pair .*; found int"),
        (
            {"callbacks": fedsdr.Callback},
            "callbacks: found the class Callback; expected a list of fedsdr.Callback",
        ),
        ({"callbacks": [fedsdr.Callback]}, "callbacks: found the class Callback"),
        ({"callbacks": [print]}, "callbacks: found a builtin_function_or_method; expected"),
    ],
)
def test_an_argument_of_another_kind_is_refused_by_its_name_with_what_was_found(small, given, says):
    with pytest.raises(UserError, match=says.replace("['", r"\['").replace("']", r"'\]")):
        fedsdr.run(small | {"model.name": "tiny"}, **given)
    assert not Path(small["run.dir"]).exists()


def test_a_data_frame_is_refused_with_the_call_that_makes_rows_of_it(small):
    pandas = pytest.importorskip("pandas")
    with pytest.raises(UserError, match=r"is a str, of a DataFrame; .*df\.to_dict\('records'\)"):
        fedsdr.run(small | {"model.name": "tiny"}, data={"a": pandas.DataFrame(rows("north", 2))})


def test_a_model_in_memory_gives_the_run_of_the_same_model_in_a_folder_and_stays_as_it_is(
    small, pair, tiny_folder, tmp_path
):
    model, _ = pair
    before = {key: value.clone() for key, value in model.state_dict().items()}
    data = {"north": rows("north", 4), "south": rows("south", 4)}
    result = fedsdr.run(small, data=data, model=pair)
    assert read_settings(result.folder).model.name.startswith("memory:")
    in_folder = fedsdr.run(small | {"run.dir": tmp_path / "named"}, data=data, model=str(tiny_folder))
    assert shared(in_folder.folder) == shared(result.folder)
    assert model.state_dict().keys() == before.keys()
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_run_on_a_model_in_memory_is_resumed_with_the_same_model_alone(small, pair, tiny_folder, tmp_path):
    class Stopping(fedsdr.Callback):
        def on_round(self, record: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    data = {"north": rows("north", 4)}
    with pytest.raises(KeyboardInterrupt):
        fedsdr.run(small, data=data, model=pair, callbacks=[Stopping()])
    folder = small["run.dir"]
    load_model.cache_clear()  # as in another process
    with pytest.raises(
        UserError,
        match=r"memory:\w{16}: the program that started the run passed this model in memory.*fedsdr\.resume\(folder, model=",
    ):
        fedsdr.resume(folder)
    build_tiny(tmp_path / "other", seed=1)
    other = (AutoModelForCausalLM.from_pretrained(tmp_path / "other"), pair[1])
    with pytest.raises(UserError, match=r"was started with the model memory:\w{16}, not with the passed one"):
        fedsdr.resume(folder, model=other)
    same = (AutoModelForCausalLM.from_pretrained(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder))
    resumed = fedsdr.resume(folder, model=same)
    whole = fedsdr.run(small | {"run.dir": tmp_path / "whole"}, data=data, model=pair)
    assert shared(resumed.folder) == shared(whole.folder)


def test_a_run_trains_the_weights_that_are_in_the_folder_when_it_begins(small, tmp_path):
    """In a notebook the same path may hold another model by the next run."""
    folder = tmp_path / "model"
    for seed in (0, 1):
        build_tiny(folder, seed)
        values = small | {"run.dir": tmp_path / f"run-{seed}", "server.num_rounds": 1}
        result = fedsdr.run(values, data={"north": rows("north", 4)}, model=str(folder))
        environment = json.loads(RunFolder(result.folder).environment.read_text())
        assert environment["model"]["identity"] == load_base(read_settings(result.folder).model).identity


def test_other_engines_and_processes_refuse_a_model_in_memory(small, pair, tiny_settings, tmp_path):
    result = fedsdr.run(small, data={"north": rows("north", 4)}, model=pair)
    load_model.cache_clear()
    name = read_settings(result.folder).model.name
    deployed = tiny_settings(
        **{"model.name": name, "federation.num_clients": 1, "run.dir": tmp_path / "over"}
    )
    with pytest.raises(UserError, match="passed this model in memory"):
        run_over(None, deployed)  # it ends before it sends
    with pytest.raises(UserError, match=r"run\.engine = 'simulation' runs workers in other processes"):
        fedsdr.run(small | {"run.engine": "simulation", "run.dir": tmp_path / "ray"}, model=pair)
    command = [sys.executable, "-m", "fedsdr.cli", "run", str(RunFolder(result.folder).config)]
    done = subprocess.run([*command, f"run.dir={tmp_path / 'worker'}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "passed this model in memory" in done.stderr


def test_what_is_no_model_is_refused(small):
    with pytest.raises(UserError, match=r"expected the name of a model, or a pair .* found dict and str"):
        fedsdr.run(small, model=({}, "tokenizer"))


def test_settings_come_as_a_recipe_or_as_a_dict_that_begins_with_one(tmp_path, tiny_folder):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'method = "fedit"\n[server]\nnum_rounds = 1\n[client]\nlocal_steps = 1\nbatch_size = 2\n'
        f'[model]\nname = "{tiny_folder}"\nmax_length = 384\n[eval]\nrewritings = false\nmax_new_tokens = 2\n'
        f'[run]\ndir = "{tmp_path}/first"\n'
    )
    data = {"north": rows("north", 4)}
    first = fedsdr.run(recipe, data=data)
    second = fedsdr.run({"recipe": str(recipe), "run.dir": tmp_path / "second", "run.seed": 1}, data=data)
    assert [read_settings(result.folder).run.seed for result in (first, second)] == [0, 1]
    assert read_settings(second.folder).server.num_rounds == 1
    with pytest.raises(UserError, match=r"unknown key server\.rounds; .*server\.num_rounds"):
        fedsdr.run({"server.rounds": 1})


def test_a_run_from_python_prints_nothing_unless_asked(tmp_path, tiny_folder):
    program = f"""
import fedsdr
rows = [{{"instruction": f"Number {{n}}?", "output": "It is."}} for n in range(4)]
values = {SMALL!r} | {{"run.dir": "runs/quiet", "model.name": {str(tiny_folder)!r}}}
fedsdr.run(values, data={{"north": rows}})
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
