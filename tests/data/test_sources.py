"""Domains come from a folder, from sources or from the built-in data, drawn by seed."""

import json
import os
from pathlib import Path

import pytest

from fedsdr.config import Data, Source
from fedsdr.data.examples import Example
from fedsdr.data.readers import Record
from fedsdr.data.sources import PRESETS, Domain, count_known_responses, find_duplicates, load_domains
from fedsdr.errors import UserError


def write(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count: int, start: int = 0) -> list[dict]:
    return [{"instruction": f"say {n}", "output": str(n)} for n in range(start, start + count)]


def prompts(records: list[Record]) -> list[str]:
    return [record.example.instruction for record in records]


@pytest.fixture
def root(tmp_path) -> str:
    for domain in ("math", "code", "law"):
        write(tmp_path / "root" / domain / "train.jsonl", rows(20))
        write(tmp_path / "root" / domain / "test.jsonl", rows(10, start=20))
    return str(tmp_path / "root")


def test_domains_are_sorted_or_in_the_order_asked_for(root):
    assert list(load_domains(Data(root=root))) == ["code", "law", "math"]
    assert list(load_domains(Data(root=root, domains=("math", "code")))) == ["math", "code"]


def test_unknown_domain_lists_those_there_are(root):
    with pytest.raises(UserError, match="unknown domain 'maths'; known: code, law, math"):
        load_domains(Data(root=root, domains=("maths",)))


def test_a_domain_asked_for_twice_is_an_error(root):
    with pytest.raises(UserError, match=r"data\.domains: 'code' is listed twice"):
        load_domains(Data(root=root, domains=("code", "math", "code")))


def test_draw_keeps_the_order_and_depends_on_the_seed_alone(root):
    first = load_domains(Data(root=root, num_train=5, num_test=3))["law"]
    again = load_domains(Data(root=root, num_train=5, num_test=3, domains=("law",)))["law"]
    other = load_domains(Data(root=root, num_train=5, num_test=3, seed=1))["law"]
    whole = prompts(load_domains(Data(root=root))["law"].train)
    assert first == again
    assert first.train != other.train
    assert (len(first.train), len(first.test)) == (5, 3)
    assert prompts(first.train) == [text for text in whole if text in prompts(first.train)]


def test_asking_for_more_than_there_is_takes_all(root):
    domain = load_domains(Data(root=root, num_train=1000, num_test=1000))["law"]
    assert (len(domain.train), len(domain.test)) == (20, 10)


def test_root_wins_over_sources(root, tmp_path):
    source = Source(domain="other", train=write(tmp_path / "other.jsonl", rows(5)))
    assert "other" not in load_domains(Data(root=root, sources=(source,)))


def test_wrong_root_shows_the_layout(root, tmp_path):
    (tmp_path / "empty").mkdir()
    for wrong in ("none", "empty"):
        with pytest.raises(UserError, match=f"{wrong}.*<root>/<domain>/train.jsonl"):
            load_domains(Data(root=str(tmp_path / wrong)))
    (tmp_path / "root" / "notes").mkdir()
    with pytest.raises(UserError, match=r"notes contains no train.jsonl"):
        load_domains(Data(root=root))


def test_domain_that_cannot_name_a_folder_is_refused(tmp_path):
    source = Source(domain="../law", train=write(tmp_path / "a.jsonl", rows(5)))
    with pytest.raises(UserError, match=r"domain '../law' cannot name a folder"):
        load_domains(Data(sources=(source,)))


def test_source_with_train_and_test_file(tmp_path):
    source = Source(
        domain="geo",
        train=write(tmp_path / "a.jsonl", [{"q": "Where?", "a": "There.", "hospital": "north"}]),
        test=write(tmp_path / "b.jsonl", [{"q": "When?", "a": "Then.", "hospital": "south"}]),
        columns={"instruction": "q", "response": "a"},
    )
    domain = load_domains(Data(sources=(source,)), id_column="hospital")["geo"]
    assert domain.train == [Record(Example("Where?", "There.", "geo"), "north")]
    assert domain.test == [Record(Example("When?", "Then.", "geo"), "south")]


def test_held_out_share_never_divides_a_prompt(tmp_path):
    # Each prompt twice, as MathInstruct has it with two kinds of solution.
    twice = rows(50) + [{**row, "output": "again"} for row in rows(50)]
    path = write(tmp_path / "a.jsonl", twice)

    def load(seed: int) -> Domain:
        return load_domains(Data(sources=(Source(domain="math", train=path, test_share=0.2),), seed=seed))[
            "math"
        ]

    assert (len(load(0).train), len(load(0).test)) == (80, 20)  # 10 of 50 prompts, each twice
    assert find_duplicates(load(0)) == []
    assert sorted(prompts(load(0).train + load(0).test)) == sorted(row["instruction"] for row in twice)
    assert load(0) == load(0)
    assert load(0).test != load(1).test


def test_held_out_share_must_leave_training_data(tmp_path):
    source = Source(domain="math", train=write(tmp_path / "a.jsonl", rows(1)))
    with pytest.raises(UserError, match=r"test_share = 0.1 of 1 prompts leaves none"):
        load_domains(Data(sources=(source,)))


def test_data_set_folder_with_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    sets = {name: datasets.Dataset.from_list(rows(n)) for name, n in (("train", 6), ("dev", 3))}
    datasets.DatasetDict(sets).save_to_disk(tmp_path / "saved")
    source = Source(domain="math", train=str(tmp_path / "saved"), test_split="dev")
    domain = load_domains(Data(sources=(source,)))["math"]
    assert (len(domain.train), len(domain.test)) == (6, 3)


def test_a_streamed_data_set_may_have_a_file_as_its_test_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows(6))}).save_to_disk(tmp_path / "saved")
    file = write(tmp_path / "test.jsonl", rows(3, start=6))
    source = Source(domain="math", train=str(tmp_path / "saved"), test=file, stream=2)
    domain = load_domains(Data(sources=(source,)))["math"]
    assert (len(domain.train), len(domain.test)) == (2, 3)
    with pytest.raises(
        UserError, match=r"stream = 2 is for hub ids and folders, and .*test\.jsonl is a file"
    ):
        load_domains(Data(sources=(Source(domain="math", train=file, stream=2),)))


def test_labels_without_choices_get_the_labels_of_the_domain(tmp_path):
    tones = ["up", "down", "flat"]
    train = [{"instruction": f"tone {n}", "output": tones[n % 2], "label": tones[n % 2]} for n in range(10)]
    test = [
        {"instruction": "tone?", "output": "flat", "label": "flat"},
        {"instruction": "hi", "output": "ho"},
    ]
    write(tmp_path / "fin" / "train.jsonl", train)
    write(tmp_path / "fin" / "test.jsonl", test)
    domain = load_domains(Data(root=str(tmp_path), num_train=1))["fin"]
    assert domain.train[0].example.choices == domain.test[0].example.choices == tuple(sorted(tones))
    assert domain.test[1].example.choices == ()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_read_a_local_copy_and_count_what_is_empty(tmp_path, preset):
    good = {"instruction": "Choose one.", "input": "", "output": "positive", "source": "x"}
    many = [{**good, "input": str(n)} for n in range(10)]
    path = write(tmp_path / "copy.jsonl", [{**good, "output": ""}, *many, {**good, "output": None}])
    domain = load_domains(Data(sources=(Source(domain="d", preset=preset, train=path),)))["d"]
    assert (len(domain.train), len(domain.test), sum(domain.left_out.values())) == (9, 1, 2)
    assert domain.train[0].example.label == ("positive" if preset == "fingpt" else "")


def test_empty_response_is_an_error_where_no_preset_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", [*rows(3), {"instruction": "x", "output": ""}])
    with pytest.raises(UserError, match=r"a.jsonl:4: response is empty"):
        load_domains(Data(sources=(Source(domain="d", train=path),)))


def test_wrong_sources_are_named(tmp_path):
    with pytest.raises(UserError, match="nearest first: fingpt"):
        load_domains(Data(sources=(Source(domain="d", preset="fingtp"),)))
    with pytest.raises(UserError, match="set one of preset, train and hub"):
        load_domains(Data(sources=(Source(domain="d"),)))
    with pytest.raises(UserError, match="listed twice"):
        load_domains(Data(sources=(Source(domain="d"), Source(domain="d"))))


def test_duplicates_are_found_whatever_their_case_and_white_space():
    train = [Record(Example("Where is  Oslo?", "a", "d", context="Map"))]
    test = [
        Record(Example("where is\nOSLO? ", "b", "d", context="map")),
        Record(Example("Where is Oslo?", "b", "d", context="Other")),
    ]
    assert find_duplicates(Domain(train, test)) == ["where is\nOSLO? "]


def test_built_in_data_are_drawn_by_the_data_seed_and_need_no_id_column():
    whole = load_domains(Data())
    assert list(whole) == ["code", "finance", "general", "math", "medicine"]
    first, other = (load_domains(Data(seed=seed, num_train=5), "hospital")["math"] for seed in (0, 1))
    assert first.train != other.train
    assert set(prompts(first.train + other.train)) < set(prompts(whole["math"].train))


def test_real_domains_load_whole():
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("FEDSDR_DATA", beside)) / "domains"
    if not folder.is_dir():
        pytest.skip("set FEDSDR_DATA to a folder that holds domains/<domain>/{train,test}.jsonl")
    for name, domain in load_domains(Data(root=str(folder))).items():
        for part, records in (("train", domain.train), ("test", domain.test)):
            assert len(records) == (folder / name / f"{part}.jsonl").read_bytes().count(b"\n")


def test_one_set_cannot_be_both_training_and_test(tmp_path):
    """Went wrong once: a file has no splits, so test_split gave the training file again."""
    file = write(tmp_path / "a.jsonl", rows(10))
    for source in (
        Source(domain="math", train=file, test_split="test"),
        Source(domain="math", train=file, test=file),
        Source(domain="math", hub="some/set", test_split="train"),
    ):
        with pytest.raises(UserError, match="would be both training and test set"):
            load_domains(Data(sources=(source,)))


def test_test_responses_that_are_training_responses_are_counted_but_labels_are_not():
    """The built-in data ask for one function in several ways: correct answers may be memorised."""
    train = [Example("a", "def f(): return 1", "code"), Example("b", "good", "code", label="good")]
    test = [
        Example("c", "def f(): return 1", "code"),
        Example("d", "def f(): return 2", "code"),
        Example("e", "good", "code", label="good"),
    ]
    domain = Domain([Record(e) for e in train], [Record(e) for e in test])
    assert (count_known_responses(domain), find_duplicates(domain)) == (1, [])


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("parts/*.jsonl", "parts/test.jsonl"),
        ("parts/a.jsonl", "./parts/a.jsonl"),
        ("parts/a.jsonl", "*/*.jsonl"),
    ],
)
def test_no_test_file_lies_in_the_training_pattern(tmp_path, monkeypatch, train, test):
    """Went wrong once: the test examples of such a source were trained on."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "parts" / "a.jsonl", rows(5))
    write(tmp_path / "parts" / "test.jsonl", rows(3, start=5))
    shared = "test.jsonl" if "test" in test else "a.jsonl"
    with pytest.raises(
        UserError, match=rf"'math'.*{shared} would be both training and test set.*train.*test"
    ):
        load_domains(Data(sources=(Source(domain="math", train=train, test=test),)))
    apart = Source(domain="math", train="parts/a.jsonl", test="parts/t*.jsonl")
    assert len(load_domains(Data(sources=(apart,)))["math"].test) == 3
