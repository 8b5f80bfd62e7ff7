"""Files of every form become the same examples, and a wrong one is an error that says where and why."""

import json
import sys
from pathlib import Path

import pytest

from fedsdr.config import Reading
from fedsdr.data.examples import Example
from fedsdr.data.files import hub_rows
from fedsdr.data.readers import Record, read_file, to_records
from fedsdr.errors import UserError

FIXTURES = Path(__file__).parent / "fixtures"
GOOD = {"instruction": "Where is Oslo?", "output": "In Norway."}
OSLO = Example("Where is Oslo?", "In Norway.", "geo")
ROME = Example("Where is Rome?", "In Italy.", "geo")


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_alpaca_form_skips_blank_lines_and_ignores_other_keys():
    assert read_file(FIXTURES / "alpaca.jsonl", "mixed") == [
        Record(
            Example("What is the tone?", "positive", "mixed", context="Sales rose 4 %.", label="positive")
        ),
        Record(
            Example("How many legs have 3 cats?", "3 * 4 = 12. The answer is 12.", "mixed", answer="12"), "7"
        ),
        Record(Example("Where is Oslo?", "In Norway.", "mixed", system="Be brief.", facts=("Norway",))),
    ]


def test_messages_form():
    assert [record.example for record in read_file(FIXTURES / "messages.jsonl", "geo")] == [
        Example("Where is Oslo?", "In Norway.", "geo", system="Be brief.", facts=("Norway",)),
        ROME,
    ]


def test_json_list_with_the_field_names_as_keys():
    assert [record.example for record in read_file(FIXTURES / "list.json", "geo")] == [OSLO, ROME]


def test_csv_with_a_column_mapping():
    columns = {"instruction": "question", "response": "reply", "client": "ward", "facts": "must_say"}
    assert read_file(FIXTURES / "table.csv", "geo", Reading(columns=columns)) == [
        Record(
            Example("Where is\nOslo?", "In Norway, far north.", "geo", facts=("Norway", "north")), "north"
        ),
        Record(ROME, "south"),
    ]


def test_a_field_is_made_of_several_columns():
    columns = {"instruction": "Does {b} follow from {a}?", "context": "{note}", "response": "reply"}
    rows = [
        ("x:1", {"a": "rain {here}", "b": 7, "reply": "no", "note": None}),
        ("x:2", {"a": "rain", "b": "wet", "reply": "yes", "note": "June"}),
    ]
    assert [record.example for record in to_records(rows, "nli", Reading(columns=columns))] == [
        Example("Does 7 follow from rain {here}?", "no", "nli"),
        Example("Does wet follow from rain?", "yes", "nli", context="June"),
    ]
    with pytest.raises(UserError, match="no record has the keys in columns: 'c' \\(for instruction\\)"):
        to_records(rows, "nli", Reading(columns={**columns, "instruction": "{a} and {c}"}))
    rows[0][1]["b"] = None
    with pytest.raises(UserError, match="x:1: instruction is missing"):
        to_records(rows, "nli", Reading(columns=columns))


def test_numbered_classes_become_their_names_and_a_hidden_one_is_missing(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"output": datasets.Value("string"), "label": datasets.ClassLabel(names=["not_so", "so"])}
    )
    rows = [{"output": "x", "label": n} for n in (1, 0, -1)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "set")
    assert [row["label"] for _, row in hub_rows(str(tmp_path / "set"), "train")] == ["so", "not so", None]


def test_separators_inside_a_json_string_do_not_end_a_line(tmp_path):
    text = "one\u2028two\x85three"
    path = write(tmp_path, "a.jsonl", json.dumps({**GOOD, "output": text}, ensure_ascii=False) + "\r\n")
    assert read_file(path, "geo")[0].example.response == text


LINE = json.dumps(GOOD)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        (
            "a.jsonl",
            f"{LINE}\n\n{{broken\n",
            ["a.jsonl:3", "not JSON", "broken", "one object a line"],
        ),
        ("a.jsonl", f"{LINE}\n[1]\n", ["a.jsonl:2", "list [1]", "expected an object"]),
        (
            "a.jsonl",
            '{"instruction": "x", "answer": "y"}',
            [":1", "response is missing", "output or response"],
        ),
        ("a.jsonl", '{"instruction": " ", "output": "y"}', [":1", "instruction is empty"]),
        ("a.jsonl", '{"instruction": 3, "output": "y"}', [":1", "instruction", "int 3", "expected text"]),
        ("a.jsonl", json.dumps({**GOOD, "answer": True}), [":1", "answer", "bool True", "text or a number"]),
        ("a.jsonl", json.dumps({**GOOD, "label": 1}), [":1", "label", "int 1", "expected text"]),
        (
            "a.jsonl",
            json.dumps({**GOOD, "facts": "Norway"}),
            [":1", "facts", "str Norway", "a list of non-empty texts"],
        ),
        (
            "a.jsonl",
            json.dumps({**GOOD, "choices": ["a", 1]}),
            [":1", "choices", "a list of non-empty texts"],
        ),
        (
            "a.jsonl",
            json.dumps({**GOOD, "label": "c", "choices": ["a", "b"]}),
            [":1", "label", "str c", "one of the choices ['a', 'b']"],
        ),
        (
            "a.jsonl",
            json.dumps({**GOOD, "facts": ["Norway", ""]}),
            [":1", "facts", "a list of non-empty texts"],
        ),
        ("a.jsonl", json.dumps({**GOOD, "choices": [" "]}), [":1", "choices", "a list of non-empty texts"]),
        ("a.jsonl", '{"instruction": "x", "output": "y", "answer": NaN}', [":1", "NaN"]),
        (
            "a.jsonl",
            '{"instruction": "x", "output": "y", "answer": 1e999}',
            [":1", "answer", "inf", "finite"],
        ),
        ("a.jsonl", f"{LINE}\n" + "[" * 100_000, ["a.jsonl:2", "nested"]),
        ("a.json", "[" * 100_000 + "]" * 100_000, ["a.json", "nested"]),
        ("a.jsonl", f'{LINE}\n{{"instruction": "x"\n', ["a.jsonl:2", 'the end after {"instruction": "x"']),
        ("a.jsonl", '{"instruction": "x", "output": "\\ud83d"}', [":1", "response", "surrogate"]),
        ("a.jsonl", LINE.encode() + b"\n\xff\xfe", ["a.jsonl:2", "ff fe", "UTF-8"]),
        ("a.jsonl", "\n\n", ["a.jsonl", "no example"]),
        ("a.json", "", ["a.json", "no example"]),
        ("a.json", "[]", ["a.json", "no example"]),
        ("a.json", LINE, ["a.json", "found dict", "a list of objects"]),
        ("a.json", f'[{LINE},\n{{"instruction": "x"}}]', ["a.json, record 2", "response is missing"]),
        ("a.json", f"[{LINE},\n oops]", ["a.json", "line 2", "oops"]),
        ("a.csv", "", ["a.csv", "no example"]),
        ("a.csv", "instruction,output\n", ["a.csv", "no example"]),
        ("a.csv", "output,instruction,output\nx,y,z\n", ["a.csv:1", "without duplicates"]),
        ("a.csv", "Where is Oslo?,In Norway.\nWhere is Rome?,In Italy.\n", ["instruction is missing"]),
        ("a.csv", 'instruction,output\n"a\nb",c\nd\n', ["a.csv:4", "found 1 cells", "expected 2"]),
        ("a.csv", 'instruction,output\n"a"b,c\n', ["a.csv:2", "not CSV"]),
        ("a.txt", LINE, ["a.txt", "'.txt'", ".jsonl, .ndjson, .json, .csv"]),
    ],
)
def test_a_wrong_file_is_an_error_with_its_place(tmp_path, name, data, expected):
    with pytest.raises(UserError) as error:
        read_file(write(tmp_path, name, data), "geo")
    assert all(part in str(error.value) for part in expected), str(error.value)


def test_missing_file_and_folder_are_named(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            read_file(path, "geo")


def test_errors_show_little_of_the_data(tmp_path):
    secret = "patient " * 100
    wrong = [
        secret,
        json.dumps({"instruction": [secret], "output": "y"}),
        json.dumps({"instruction": "x", secret: "y"}),
        json.dumps({**GOOD, "label": secret, "choices": [secret + "a"]}),
        json.dumps({"messages": secret}),
        json.dumps({"messages": [{"role": secret}]}),
    ]
    for line in wrong:
        with pytest.raises(UserError) as error:
            read_file(write(tmp_path, "a.jsonl", line), "geo")
        # 80 characters a value hold "patient " ten times; one error gives two values.
        assert 0 < str(error.value).count("patient") <= 20


def test_columns_name_known_fields_and_keys_that_are_there():
    rows = [("a:1", GOOD)]
    with pytest.raises(UserError, match="unknown field 'reply'; known fields: instruction, response"):
        to_records(rows, "geo", Reading(columns={"reply": "output"}))
    with pytest.raises(UserError, match="no record has the keys in columns: 'sentiment' \\(for label\\)"):
        to_records(rows, "geo", Reading(columns={"label": "sentiment"}))


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


def test_data_set_folders_of_every_kind_give_the_same_records(tmp_path, datasets):
    rows = [
        {"question": "Where is Oslo?", "reply": "In Norway."},
        {"question": "Where is Rome?", "reply": "In Italy."},
    ]
    loaded = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": loaded}).save_to_disk(tmp_path / "saved")
    loaded.save_to_disk(tmp_path / "saved_alone")
    for folder in ("csv", "parquet"):
        (tmp_path / folder).mkdir()
    loaded.to_csv(tmp_path / "csv" / "train.csv")
    loaded.to_parquet(tmp_path / "parquet" / "train.parquet")
    for folder in ("saved", "saved_alone", "csv", "parquet"):
        records = to_records(
            hub_rows(str(tmp_path / folder), "train"),
            "geo",
            Reading(columns={"instruction": "question", "response": "reply"}),
        )
        assert [record.example for record in records] == [OSLO, ROME], folder


def test_a_stream_takes_some_rows_of_a_shuffle_the_same_each_time_and_reads_no_more(
    tmp_path, datasets, monkeypatch
):
    rows = [{"question": f"What is {n}?", "reply": f"{n}", "kind": n % 2} for n in range(60)]
    loaded = datasets.Dataset.from_list(rows)
    loaded = loaded.cast_column("kind", datasets.ClassLabel(names=["even", "odd"]))
    datasets.DatasetDict({"train": loaded}).save_to_disk(tmp_path / "saved")
    for folder in ("json", "parquet"):
        (tmp_path / folder).mkdir()
    loaded.remove_columns("kind").to_json(tmp_path / "json" / "train.jsonl")
    loaded.to_parquet(tmp_path / "parquet" / "train.parquet")
    for folder in ("saved", "json", "parquet"):
        taken = [row for _, row in hub_rows(str(tmp_path / folder), "train", num=20, seed=3)]
        again, other = (hub_rows(str(tmp_path / folder), "train", num=20, seed=seed) for seed in (3, 4))
        assert taken == [row for _, row in again] != [row for _, row in other]
        numbers = [int(row["reply"]) for row in taken]
        assert len(set(numbers)) == 20 and numbers != sorted(numbers)
        assert folder == "json" or [row["kind"] for row in taken] == [("even", "odd")[n % 2] for n in numbers]
        assert len(hub_rows(str(tmp_path / folder), "train", num=100)) == 60
    read = []

    def endless():
        while True:
            read.append(GOOD)
            yield GOOD

    stream = datasets.IterableDatasetDict({"train": datasets.IterableDataset.from_generator(endless)})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, streaming: stream)
    assert len(hub_rows("some/set", "train", num=20)) == 20
    assert len(read) < 2000


def test_unknown_split_lists_the_splits(tmp_path, datasets):
    loaded = datasets.Dataset.from_list([GOOD])
    loaded.save_to_disk(tmp_path / "alone")
    datasets.DatasetDict({"train": loaded, "dev": loaded}).save_to_disk(tmp_path / "both")
    # A set without splits must not pass for its own test set.
    with pytest.raises(UserError, match=r"no split 'test'; its splits: train$"):
        hub_rows(str(tmp_path / "alone"), "test")
    with pytest.raises(UserError, match=r"no split 'test'; its splits: train, dev$"):
        hub_rows(str(tmp_path / "both"), "test")


def test_unreachable_hub_names_the_id_and_the_way_out(datasets, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"data set FinGPT/fingpt-sentiment-train cannot .* `train = "
    ) as error:
        hub_rows("FinGPT/fingpt-sentiment-train", "train")
    assert error.value.__cause__ is None


def test_without_datasets_the_command_to_install_it_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'fedsdr\[hub\]'"):
        hub_rows("FinGPT/fingpt-sentiment-train", "train")


def test_a_missing_number_of_a_table_is_no_answer():
    """Tables mark missing values by NaN."""
    with pytest.raises(UserError, match="a:1: answer: found float nan; expected a finite number"):
        to_records([("a:1", {**GOOD, "answer": float("nan")})], "geo")


def test_data_may_bring_rewritings_under_their_name_or_a_mapped_one():
    row = {**GOOD, "distilled": "It is in Norway.", "teacher": "Norway has it."}
    for columns, text in (({}, "It is in Norway."), ({"distilled": "teacher"}, "Norway has it.")):
        (record,) = to_records([("a:1", row)], "geo", Reading(columns=columns))
        assert record.example.distilled == text
