"""Which column feeds which field, and which rows are taken: data sets as they stand on the hub."""

import json
from pathlib import Path

import pytest

from fedsdr.config import Data, Reading, Source
from fedsdr.data.examples import Example
from fedsdr.data.readers import to_records
from fedsdr.data.sources import load_domains
from fedsdr.errors import UserError


def example(row: dict, **reading: object) -> Example:
    (record,) = to_records([("x:1", row)], "d", Reading(**reading))
    return record.example


def test_a_column_that_is_named_for_one_field_feeds_no_other_by_its_name():
    """GSM8K's answer is the whole solution: as final answer too, every example contradicted itself."""
    row = {"question": "4 + 18?", "answer": "4 + 18 = 22\n#### 22", "input": "x"}
    assert example(row, columns={"instruction": "{question}", "response": "answer"}) == Example(
        "4 + 18?", "4 + 18 = 22\n#### 22", "d", context="x"
    )
    # A text that is made of it uses it up too; whoever wants it twice says so.
    assert example(row, columns={"instruction": "{question} {input}", "response": "answer"}).context == ""
    both = example(row, columns={"instruction": "question", "response": "answer", "answer": "answer"})
    assert both.answer == both.response
    # What every example must have keeps its name.
    row = {"instruction": "Tone?", "output": "good"}
    assert example(row, columns={"label": "output"}) == Example("Tone?", "good", "d", label="good")


def test_a_field_is_switched_off():
    row = {"instruction": "x", "output": "y", "label": 3, "answer": True, "system": "z"}
    assert example(row, columns={"label": "", "answer": "", "system": ""}) == Example("x", "y", "d")


def test_columns_hold_for_a_root_and_for_all_sources(tmp_path: Path):
    for part in ("train", "test"):
        (tmp_path / f"{part}.jsonl").write_text('{"q": "Where?", "a": "There.", "who": "me"}\n')
    columns = {"instruction": "q", "response": "a"}
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "geo").symlink_to(tmp_path)
    files = {part: str(tmp_path / f"{part}.jsonl") for part in ("train", "test")}
    source = Source(domain="geo", columns={"system": "who"}, **files)
    for data, system in (
        (Data(root=str(tmp_path / "root"), columns=columns), ""),
        (Data(sources=(source,), columns=columns), "me"),
    ):
        (record,) = load_domains(data)["geo"].train
        assert record.example == Example("Where?", "There.", "geo", system=system)
    with pytest.raises(UserError, match=r'columns = \{instruction = "...", response = "..."\}'):
        load_domains(Data(root=str(tmp_path / "root")))


def test_mmlu_arc_and_boolq_as_they_stand_on_the_hub():
    asked = "{question}\n{choices}"
    shown = "Which is a gas?\nA. iron\nB. neon"
    columns = {"instruction": asked, "choices": "choices", "label": "answer", "response": "answer"}
    row = {"question": "Which is a gas?", "choices": ["iron", "neon"], "answer": 1}
    neon = Example(shown, "neon", "d", label="neon", choices=("iron", "neon"))
    assert example(row, columns=columns) == neon
    letter = Example(shown, "B", "d", label="B", choices=("A", "B"))
    assert example({**row, "answer": "B"}, columns=columns) == letter
    assert example(row, columns=columns, label_names=("A", "B")) == letter
    arc = {
        "question": "Which is a gas?",
        "choices": {"text": ["iron", "neon"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    columns = {**columns, "label": "answerKey", "response": "answerKey"}
    assert example(arc, columns=columns) == letter
    # Some of ARC's rows number their choices from 1: the place counts, not the number.
    arc = {**arc, "choices": {"text": ["iron", "neon"], "label": ["1", "2"]}, "answerKey": "2"}
    assert example(arc, columns=columns).label == "2"
    assert example(arc, columns=columns, label_names=("A", "B")).label == "B"
    boolq = {"question": "is it so", "passage": "It is.", "answer": True}
    columns = {"instruction": "question", "context": "passage", "label": "answer", "response": "answer"}
    assert example(boolq, columns=columns, label_names=("no", "yes")) == Example(
        "is it so", "yes", "d", context="It is.", label="yes", choices=("no", "yes")
    )
    del columns["label"]
    assert example(boolq, columns=columns).response == "true"


def test_numbered_labels_get_their_names():
    row = {"instruction": "x", "output": "y", "label": 1}
    names = ("bad", "good")
    good = Example("x", "y", "d", label="good", choices=names)
    assert example(row, label_names=names) == good
    assert example({**row, "choices": list(names)}) == good
    assert example({**row, "label": "1"}, label_names=names) == good  # of a CSV file
    assert example({**row, "label": 1.0}, label_names=names) == good  # of a table with gaps
    assert example({**row, "label": -1}, label_names=names).label == ""  # hidden
    assert example({**row, "choices": {"A": "bad", "B": "good"}}).label == "B"
    for wrong in ({"label": 2, "choices": list(names)}, {"label": 1}, {"label": True}):
        with pytest.raises(UserError, match=r"x:1: label: found .*label_names"):
            example({**row, **wrong})


def test_tests_may_be_a_list_and_columns_lie_deeper():
    row = {"text": "Add.", "code": "def f(): pass", "test_list": ["assert f() is None", "assert f"]}
    columns = {"instruction": "text", "response": "code", "tests": "test_list"}
    assert example(row, columns=columns).tests == "assert f() is None\nassert f"
    columns["tests"] = "import math\n{test_list}"
    assert example(row, columns=columns).tests == "import math\nassert f() is None\nassert f"
    squad = {"question": "Where?", "answers": {"text": ["Oslo", "in Oslo"], "answer_start": [3, 0]}}
    columns = {"instruction": "question", "response": "answers.text.0"}
    assert example(squad, columns=columns).response == "Oslo"


@pytest.mark.parametrize(
    "options", ["- Ann\n- Bo", "(A) Ann\n(B) Bo\n", "A. Ann\nB. Bo\n\nWho is it?", "* Ann\n* Bo"]
)
def test_choices_stand_in_the_prompt(options: str):
    row = {"instruction": f"Who is she?\n\nOPTIONS:\n{options}", "output": "Bo"}
    read = {"columns": {"label": "output"}, "choices_after": "OPTIONS:"}
    assert (example(row, **read).label, example(row, **read).choices) == ("Bo", ("Ann", "Bo"))
    row = {"instruction": "Who?", "input": f"OPTIONS:\n{options}", "output": "(B)"}
    assert (example(row, **read).label, example(row, **read).choices) == ("B", ("A", "B"))
    assert example({"instruction": "x", "output": "y"}, **read).choices == ()


def test_where_chooses_rows_by_value_pattern_or_list(tmp_path: Path):
    tasks = ["fix_punct", "fix_case", "coref", 7, None]
    rows = [(f"x:{n}", {"instruction": f"{n}", "output": "y", "task": task}) for n, task in enumerate(tasks)]

    def chosen(**where: object) -> list[str]:
        return [record.example.instruction for record in to_records(rows, "d", Reading(where=where))]

    assert chosen(task="fix_punct") == ["0"]
    assert chosen(task="fix_*") == ["0", "1"]
    assert chosen(task=("coref", "7")) == ["2", "3"]
    assert chosen(task="fix_*", instruction="1") == ["1"]
    with pytest.raises(UserError, match=r"no row has task = 'fix'.*: 7, coref, fix_case, fix_punct"):
        chosen(task="fix")
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for _, row in rows))
    source = Source(domain="d", train=str(path), where={"task": "fix_*"}, test_share=0.5)
    domain = load_domains(Data(sources=(source,)))["d"]
    assert sorted(r.example.instruction for r in domain.train + domain.test) == ["0", "1"]


def test_all_that_is_missing_is_named_at_once(tmp_path: Path):
    places = {}
    for name in ("geo", "law"):
        places[name] = tmp_path / f"{name}.jsonl"
        places[name].write_text('{"q": "Where?", "a": "There."}\n' * 20)
    columns = {"instruction": "{ask} {body}", "response": "reply"}
    sources = tuple(Source(domain=name, train=str(path), columns=columns) for name, path in places.items())
    with pytest.raises(UserError) as error:
        load_domains(Data(sources=sources))
    missing = "'ask' (for instruction), 'body' (for instruction), 'reply' (for response)"
    for path in places.values():
        assert f"{path}:1: no record has the keys in columns: {missing}; found" in str(error.value)
    with pytest.raises(UserError, match="unknown field 'ask', 'reply'"):
        example({"q": "Where?"}, columns={"ask": "q", "reply": "q"})
    with pytest.raises(UserError) as error:
        load_domains(Data(sources=(Source(domain="geo", train=str(places["geo"])),)))
    assert "instruction is missing" in str(error.value)
    assert "response is missing" in str(error.value)
    assert 'columns = {instruction = "...", response = "..."}' in str(error.value)
    with pytest.raises(UserError, match="unknown domain 'lex', 'maths'"):
        load_domains(Data(sources=sources, domains=("lex", "maths")))
