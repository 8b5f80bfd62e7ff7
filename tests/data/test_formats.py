"""The same examples in any format are equal examples; rows that cannot be used are named, or counted."""

import csv
import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsdr.config import Data, Reading, Settings, Source
from fedsdr.data.examples import Example
from fedsdr.data.files import MOST_NAMED, file_rows
from fedsdr.data.readers import read_file
from fedsdr.data.sources import load_domains
from fedsdr.errors import UserError
from fedsdr.federation.run import run
from fedsdr.run_folder import RunFolder

NUM = 10
RUN = {
    "method": "fedsdr",
    "data.domains": [],
    "distill.verify": "off",
    "server.num_rounds": 1,
    "client.local_steps": 2,
}
ALPACA = [
    {
        "instruction": f"Which tone has sentence {n}?",
        "input": f'Sales rose {n} %,\nas "we" said; see\tthere.',
        "output": f"    tone {n % 2}: naïve 日本\n  and a second line",
        "label": f"tone {n % 2}",
        "choices": ["tone 0", "tone 1"],
        "facts": ["naïve", "second line"],
    }
    for n in range(NUM)
]
EXAMPLES = [
    Example(
        row["instruction"],
        row["output"],
        "d",
        context=row["input"],
        label=row["label"],
        choices=("tone 0", "tone 1"),
        facts=("naïve", "second line"),
    )
    for row in ALPACA
]


def truth(row: dict) -> dict:
    return {key: row[key] for key in ("label", "choices", "facts", "input")}


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(delimiter: str) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(ALPACA[0]), delimiter=delimiter)
    writer.writeheader()
    for row in ALPACA:
        writer.writerow({key: json.dumps(v) if isinstance(v, list) else v for key, v in row.items()})
    return stream.getvalue().encode()


def parquet() -> bytes:
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(ALPACA), sink)
    return sink.getvalue().to_pybytes()


def chat(list_key: str, role: str, text: str, user: str, assistant: str) -> list[dict]:
    return [
        {
            list_key: [{role: user, text: row["instruction"]}, {role: assistant, text: row["output"]}],
            **truth(row),
        }
        for row in ALPACA
    ]


FORMATS: dict[str, Callable[[], bytes]] = {
    "alpaca.jsonl": lambda: lines(ALPACA),
    "LIST.JSON": lambda: json.dumps(ALPACA).encode(),
    "table.csv": lambda: table(","),
    "table.TSV": lambda: table("\t"),
    "columns.parquet": parquet,
    "packed.jsonl.gz": lambda: gzip.compress(lines(ALPACA)),
    "packed.csv.xz": lambda: lzma.compress(table(",")),
    "messages.jsonl": lambda: lines(chat("messages", "role", "content", "user", "assistant")),
    "sharegpt.json": lambda: json.dumps(chat("conversations", "from", "value", "human", "gpt")).encode(),
    "completion.ndjson": lambda: lines(
        [{"prompt": row["instruction"], "completion": row["output"], **truth(row)} for row in ALPACA]
    ),
    "semicolons.csv": lambda: table(";"),
    "lines.json": lambda: lines(ALPACA),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_examples_in_every_format_are_equal(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(FORMATS[name]())
    assert [record.example for record in read_file(path, "d")] == EXAMPLES


def test_every_format_can_be_a_domain_of_a_root(tmp_path: Path):
    for name, content in FORMATS.items():
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        for part in ("train", "Test"):
            (folder / f"{part}.{name.partition('.')[2]}").write_bytes(content())
    for name, domain in load_domains(Data(root=str(tmp_path))).items():
        assert len(domain.train) == len(domain.test) == NUM, name
    (tmp_path / "table-csv" / "train.json").write_text("[]")
    with pytest.raises(UserError, match=r"contains train\.csv and train\.json; keep one"):
        load_domains(Data(root=str(tmp_path)))


def test_a_cell_may_be_as_long_as_a_document(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text(f"instruction,input,output\nSum up.,{'word ' * 30_000},Words.\n")
    assert len(read_file(path, "d")[0].example.context) == 150_000


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not parquet"):
        file_rows(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"a\.parquet: .*pip install 'fedsdr\[hub\]'"):
        file_rows(path)


@pytest.mark.parametrize("data", [b"no gzip", gzip.compress(b"x" * 1000)[:-9]], ids=["other", "cut"])
def test_a_damaged_packed_file_is_named(tmp_path: Path, data: bytes):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: cannot be decompressed"):
        file_rows(path)


def test_numbered_classes_of_a_parquet_file_of_the_hub_have_their_names(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"instruction": datasets.Value("string"), "label": datasets.ClassLabel(names=["not_so", "so"])}
    )
    rows = [{"instruction": "x", "label": n} for n in (1, 0)]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a.parquet")
    reading = Reading(columns={"response": "label", "label": "label"})
    records = read_file(tmp_path / "a.parquet", "d", reading)
    assert [(r.example.response, r.example.label) for r in records] == [("so", "so"), ("not so", "not so")]


def test_a_missing_file_is_said_to_be_missing_and_the_nearest_is_named(tmp_path: Path):
    (tmp_path / "nope.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"nope: there is no such file; did you mean .*nope\.jsonl\?"):
        load_domains(Data(sources=(Source(domain="d", train=str(tmp_path / "nope")),)))
    with pytest.raises(UserError, match=r"x\*\.csv: there is no such file$"):
        load_domains(Data(sources=(Source(domain="d", train=str(tmp_path / "x*.csv")),)))


def test_a_pattern_names_several_files(tmp_path: Path):
    (tmp_path / "b.jsonl").write_bytes(lines(ALPACA[5:]))
    (tmp_path / "a.json").write_bytes(json.dumps(ALPACA[:5]).encode())
    (domain,) = load_domains(Data(sources=(Source(domain="d", train=f"{tmp_path}/*.json*"),))).values()
    found = {record.example.instruction: record.place for record in domain.train + domain.test}
    assert sorted(found) == sorted(example.instruction for example in EXAMPLES)
    assert found[EXAMPLES[5].instruction] == f"{tmp_path}/b.jsonl:1"


GOOD = {"instruction": "Where is Oslo?", "output": "In Norway."}
BAD = [
    ("not JSON", '{"instruction": "x"'),
    ("not JSON", '{"instruction": "x", "output": "y", "output": "z"}'),
    ("the record of a wrong kind", "[1]"),
    ("response is missing", '{"instruction": "x"}'),
    ("instruction is empty", '{"instruction": " ", "output": "y"}'),
    ("label of a wrong kind", json.dumps({**GOOD, "label": "c", "choices": ["a", "b"]})),
    ("tool calls", '{"messages": [{"role": "tool", "content": "x"}]}'),
]


def test_all_bad_rows_of_a_file_are_named_at_once(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{json.dumps(GOOD)}\n{line}\n" for _, line in BAD))
    with pytest.raises(UserError) as error:
        read_file(path, "d")
    said = str(error.value)
    assert said.startswith(f"{len(BAD)} rows cannot be used:")
    assert all(f"{path}:{2 * n + 2}: " in said for n in range(len(BAD)))
    assert "the key 'output' appears twice" in said and "data.skip_bad_rows = true" in said


def test_of_many_bad_rows_the_first_ten_are_named_and_a_shared_reason_is_said_once(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("instruction,output\n" + "Where?,\n" * 25)
    with pytest.raises(UserError) as error:
        read_file(path, "d")
    said = str(error.value)
    assert said.startswith("25 rows cannot be used; the first 10:")
    assert said.count("response is empty") == 1
    assert [f"{path}:{n}" in said for n in range(2, 27)] == [True] * MOST_NAMED + [False] * 15


def test_bad_rows_are_left_out_where_asked_and_counted_by_reason(tmp_path: Path):
    good = [{**GOOD, "input": str(n)} for n in range(3)]
    for part in ("train", "test"):
        path = tmp_path / "geo" / f"{part}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(lines(good) + "".join(f"{line}\n" for _, line in BAD).encode())
    domain = load_domains(Data(root=str(tmp_path), skip_bad_rows=True))["geo"]
    assert [len(domain.train), len(domain.test)] == [3, 3]
    kinds = [kind for kind, _ in BAD]
    assert domain.left_out == {kind: 2 * kinds.count(kind) for kind in kinds}
    # Where nothing is left, the reasons are the error.
    path.write_text("".join(f"{line}\n" for _, line in BAD))
    with pytest.raises(UserError, match=r"(?s)calls tools.*No usable row remains"):
        load_domains(Data(root=str(tmp_path), skip_bad_rows=True))


@pytest.mark.run
def test_a_run_has_equal_bytes_in_every_format(tmp_path: Path, tiny_settings: Callable[..., Settings]):
    """Rewritings, scores and adapter of FedSDR do not show the format of the client's files."""
    left: dict[str, tuple[bytes, bytes, dict]] = {}
    for name, content in FORMATS.items():
        root, folder = tmp_path / f"data-{name}", RunFolder(tmp_path / f"run-{name}")
        (root / "d").mkdir(parents=True)
        for part in ("train", "test"):
            (root / "d" / f"{part}.{name.partition('.')[2]}").write_bytes(content())
        lengths = {"data.num_train": NUM, "data.num_test": 2, "eval.max_new_tokens": 2}
        run(tiny_settings(**RUN | lengths | {"data.root": str(root), "run.dir": str(folder.path)}))
        left[name] = (
            folder.client("d").rewritings("train").read_bytes(),
            (folder.round(1) / "adapter_model.safetensors").read_bytes(),
            folder.evaluations()[1],
        )
    alpaca = left["alpaca.jsonl"]
    assert len(alpaca[0].splitlines()) == NUM
    assert {name for name, found in left.items() if found != alpaca} == set()
