"""Finding one's way: settings explained, a first recipe, names that people type, and what a shell completes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedsdr.catalogue import all_rows, choices, find_rows
from fedsdr.cli import main
from fedsdr.compatibility import TABLES
from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.familiar import FAMILIAR
from fedsdr.methods import MEANT
from fedsdr.recipe import flat, load_settings
from fedsdr.terminal import complete_key, complete_override


def test_every_setting_is_explained_with_its_default_and_type():
    rows = {row.key: row for row in all_rows()}
    for key, value in flat(Settings().model_dump(mode="json")):
        assert rows[key].text.strip(), key
        assert json.loads(rows[key].default) == value
        assert rows[key].kind
    assert rows["model.max_length"].kind == "whole number at least 16"
    assert rows["client.mu"].kind == 'number above 0 or "auto"'
    assert rows["lora.targets"].kind == '"all-linear" or array'
    assert rows["client.mu"].used == "client.drift_correction = any but none, scaffold and scaffold-adamw"
    assert "fedsdr" in rows["method"].kind
    assert rows["run.log_to"].kind == 'several of: "tensorboard" or "wandb" or "mlflow" or "trackio"'


def test_a_key_a_section_or_a_last_name_is_found_and_a_wrong_one_names_the_nearest(capsys):
    assert [row.key for row in find_rows("client.mu")] == ["client.mu"]
    assert len(find_rows("lora")) == 5
    assert {row.key for row in find_rows("learning_rate")} == {"client.learning_rate", "server.learning_rate"}
    with pytest.raises(UserError, match=r"did you mean .*client\.learning_rate"):
        find_rows("learnig_rate")
    main_ends(["settings", "client.mu"])
    assert (
        "used with client.drift_correction = any but none, scaffold and scaffold-adamw"
        in capsys.readouterr().out
    )
    main_ends(["settings"])
    assert "`fedsdr settings SECTION`" in capsys.readouterr().out.splitlines()[-1]


def test_familiar_names_are_settings_and_the_docs_list_them():
    keys = {row.key for row in all_rows()}
    assert set(FAMILIAR.values()) <= keys
    assert not set(FAMILIAR) & {key.rpartition(".")[2] for key in keys}
    assert [row.key for row in find_rows("lr")] == ["client.learning_rate"]
    page = (Path(__file__).parents[1] / "docs/python.md").read_text()
    listed = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| `([a-z_.]+)` \|$", page, re.MULTILINE)
    assert {name: key for names, key in listed for name in re.findall(r"\w+", names)} == FAMILIAR


def main_ends(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code in (0, None)


@pytest.mark.parametrize("name", MEANT)
def test_names_that_people_type_are_answered_by_a_setting_that_exists(name: str):
    with pytest.raises(UserError, match="you may mean") as error:
        load_settings(None, [f"method={name}"])
    found = re.findall(r"([a-z_.]+) = ([a-z-]+)", str(error.value).partition("you may mean")[2])
    assert found
    assert all(value in TABLES[key] for key, value in found)


def test_init_writes_a_recipe_that_loads_and_refuses_what_is_not_there(tmp_path: Path, capsys):
    rows = [{"instruction": f"Say {number}.", "output": f"The number {number}."} for number in range(20)]
    data = tmp_path / "numbers.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "mine.toml"
    words = ["init", str(recipe), "--model", "tiny", "--method", "fedit", "--data"]
    main_ends([*words, str(data)])
    settings = load_settings(recipe)
    assert (settings.method, settings.model.name) == ("fedit", "tiny")
    assert [(one.domain, one.train) for one in settings.data.sources] == [("numbers", str(data))]
    assert f"fedsdr run {recipe} --dry-run" in capsys.readouterr().out
    bad = {
        "exists already": [str(data)],
        "does not exist": [str(tmp_path / "no")],
        "data.sources: a domain is listed twice": [f"{data},{data}"],
        "there is no such folder": [str(data), "--model", str(tmp_path / "no")],
        "did you mean the built-in smollm2-135m-instruct": [str(data), "--model", "smollm2-135m-instrct"],
    }
    for said, more in bad.items():
        if said == "does not exist":
            recipe.unlink()
        with pytest.raises(SystemExit) as end:
            main([*words, *more])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert said in error
        assert "--columns" not in error  # the columns are not what is wrong
    assert not recipe.exists()


ROWS = [f'{{"instruction": "Say {n}.", "output": "The number {n}."}}' for n in range(20)]


@pytest.mark.parametrize(
    ("text", "more", "option"),
    [
        (b'{"question": "Who?", "output": "Ada."}\n', [], "--columns"),
        (b"", [], None),
        (b"\xff\xfe\n", [], None),
        (ROWS[0].encode(), [], None),  # one prompt cannot be divided
        ("\n".join(ROWS).encode(), ["--client-column", "branhc"], None),
        ("\n".join([*ROWS, "{", "{"]).encode(), [], "--skip-bad-rows"),
    ],
)
def test_init_names_the_option_that_helps_and_no_other(
    tmp_path: Path, capsys, text: bytes, more: list[str], option: str | None
):
    """It named --columns after every mistake, and for rows to be left out a setting that it did not take."""
    data, recipe = tmp_path / "rows.jsonl", tmp_path / "mine.toml"
    data.write_bytes(text)
    with pytest.raises(SystemExit) as end:
        main(["init", str(recipe), "--model", "tiny", "--method", "fedit", "--data", str(data), *more])
    assert end.value.code == 2
    told = re.findall(r"fedsdr init takes (--[a-z-]+)", capsys.readouterr().err)
    assert told == ([option] if option else [])


def test_init_leaves_bad_rows_out_where_asked_and_so_does_its_recipe(tmp_path: Path, capsys):
    data, recipe = tmp_path / "rows.jsonl", tmp_path / "mine.toml"
    data.write_text("\n".join([*ROWS, "{", "{"]))
    words = ["init", str(recipe), "--model", "tiny", "--method", "fedit", "--data", str(data)]
    main_ends([*words, "--skip-bad-rows"])
    assert "2 rows" in capsys.readouterr().out
    assert load_settings(recipe).data.skip_bad_rows


def test_init_names_files_of_one_name_by_their_folders(tmp_path: Path):
    paths = [tmp_path / name / "train.jsonl" for name in ("bank", "clinic")]
    for path in paths:
        path.parent.mkdir()
        rows = [{"instruction": f"{path.parent.name} {n}?", "output": f"It is {n}."} for n in range(20)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "mine.toml"
    words = ["init", str(recipe), "--model", "tiny", "--method", "fedit"]
    main_ends([*words, "--data", ",".join(map(str, paths))])
    assert [one.domain for one in load_settings(recipe).data.sources] == ["bank", "clinic"]


def test_init_takes_columns_and_the_one_that_names_the_client(tmp_path: Path, capsys):
    data = tmp_path / "rows.csv"
    rows = [
        f"What is {number} + 1?,It is {number + 1}.,{'east' if number % 2 else 'west'}"
        for number in range(40)
    ]
    data.write_text("\n".join(["question,reply,site", *rows]) + "\n")
    recipe = tmp_path / "mine.toml"
    words = ["init", str(recipe), "--model", "tiny", "--method", "fedit", "--data", str(data)]
    with pytest.raises(SystemExit):
        main(words)
    assert "fedsdr init takes --columns instruction=" in capsys.readouterr().err
    main_ends([*words, "--columns", "instruction=question,response=reply", "--client-column", "site"])
    assert "mine.toml: 2 clients" in capsys.readouterr().out
    assert load_settings(recipe).data.columns == {"instruction": "question", "response": "reply"}


def test_init_without_a_terminal_asks_for_data_and_says_what_it_took(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    recipe = tmp_path / "mine.toml"
    with pytest.raises(SystemExit):
        main(["init", str(recipe)])
    assert "give --data" in capsys.readouterr().err
    assert not recipe.exists()
    main_ends(["init", str(recipe), "--data", "built-in", "--model", "tiny"])
    out = capsys.readouterr().out
    assert "--method is not given: fedsdr is taken" in out
    assert "--model is not given" not in out


def test_a_shell_completes_keys_and_the_values_of_those_that_have_few():
    assert complete_override("client.drift") == ["client.drift_correction="]
    assert complete_override("client.drift_correction=scaffold") == [
        f"client.drift_correction={name}" for name in choices("client.drift_correction") if "scaffold" in name
    ]
    assert complete_override("model.quantization=") == [
        f"model.quantization={name}" for name in ("none", "4bit", "8bit")
    ]
    assert complete_key("lo")[:2] == ["lora", "lora.rank"]


def test_the_catalogue_imports_no_torch():
    code = "import sys, fedsdr.catalogue; sys.exit('torch' in sys.modules or 'flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
