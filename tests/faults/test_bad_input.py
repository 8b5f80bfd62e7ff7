"""Random bad input to every reader: a clear error, and never a traceback."""

import io
import json
import random
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from fedsdr.client.state import load_state
from fedsdr.config import Section, Settings
from fedsdr.data.readers import read_file
from fedsdr.deployment.certificates import make_authority, node_key, read_public
from fedsdr.deployment.node import read_node_file
from fedsdr.errors import UserError
from fedsdr.messages import wire
from fedsdr.messages.privacy import Ledger
from fedsdr.model.adapter_files import load_adapter
from fedsdr.recipe import dump_settings, load_settings
from fedsdr.run_folder import RunFolder
from fedsdr.server.checkpoint import load_moments
from fedsdr.server.registry import registered
from fedsdr.server.validate import Rejected, check_prepared, check_reply, check_scores
from fedsdr.storage import read_json, read_lines

KEYS = [f"base_model.model.layer.lora_{letter}.weight" for letter in "AB"]
SENT = {KEYS[0]: np.zeros((2, 3), np.float32), KEYS[1]: np.zeros((3, 2), np.float32)}
WORDS = [
    b"\x00",
    b"\xff",
    b'"',
    b"{",
    b"[",
    b"}",
    b"nan",
    b"1e999",
    b"-1",
    b"null",
    b"\n",
    b",",
    b"=",
    b"../",
    b"true",
]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Change bytes, cut, double, or put in what parsers trip over."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                changed[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[place : place + rng.randint(1, 30)]
            case 2:
                changed[place:place] = rng.choice(WORDS)
            case 3:
                changed[place:place] = changed[place : place + rng.randint(1, 40)]
    return bytes(changed)


def count_refused(
    read: Callable[[Path], Any], path: Path, num: int, rng: random.Random, loaded: Path | None = None
) -> int:
    """Number of mutations of a good file that are rejected with a user error; any other error fails. `loaded`
    is passed to the reader, if it is not the file itself.
    """
    good, refused = path.read_bytes(), 0
    read(loaded or path)
    for _ in range(num):
        path.write_bytes(mutated(good, rng))
        try:
            read(loaded or path)
        except UserError:
            refused += 1
    return refused


def files(tmp_path: Path) -> dict[str, tuple[bytes, Callable[[Path], Any]]]:
    """Name of a file -> good content, and what reads it."""
    rows = [
        {"instruction": "What is it?", "output": "A dog.", "label": "dog", "choices": ["dog", "cat"]},
        {"instruction": "Add 2 and 3.", "input": "", "output": "It is 5.", "answer": 5, "facts": ["5"]},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    node = (
        'superlink = "h:1"\nroot-certificates = "ca"\nprivate-key = "key"\nport = 9000\n[node]\n'
        'client = "a"\ndata = "."\nfolder = "s"\nmodel = "tiny"\n'
    )
    make_authority(tmp_path)
    ca, key = (tmp_path / "ca.crt").read_bytes(), node_key()
    (tmp_path / "ca").write_bytes(ca)
    (tmp_path / "key").write_bytes(key[0])
    toml = tmp_path / "given.toml"
    toml.write_text(node)
    return {
        "rows.jsonl": (lines.encode(), lambda path: read_file(path, "d")),
        "rows.json": (json.dumps(rows).encode(), lambda path: read_file(path, "d")),
        "rows.csv": (b"instruction,output\nWhat?,This.\nWhen?,Now.\n", lambda p: read_file(p, "d")),
        "recipe.toml": (dump_settings(Settings()).encode(), load_settings),
        "node.toml": (node.encode(), read_node_file),
        "bank.pub": (key[1], read_public),
        "key": (key[0], lambda path: read_node_file(toml)),
        "ca": (ca, lambda path: read_node_file(toml)),
        "record.json": (json.dumps({"a": [1, 2]}).encode(), read_json),
        "events.jsonl": (b'{"event": "round", "round": 1}\n' * 3, read_lines),
    }


def test_no_reader_answers_bad_files_with_a_traceback(
    tmp_path: Path, often: Callable[[int, int], int], record: Callable[..., None]
):
    rng, num = random.Random(0), often(100, 1_000)
    kinds = files(tmp_path)
    for name, (good, read) in kinds.items():
        (tmp_path / name).write_bytes(good)
        refused = count_refused(read, tmp_path / name, num, rng)
        (tmp_path / name).write_bytes(good)  # another may need it
        assert refused > num / 20, name
        record(
            fault=f"random bad {name}",
            num=num,
            lost=f"no traceback; {refused} refused, the rest was still good",
        )


FIELDS = [
    "instruction",
    "input",
    "output",
    "messages",
    "role",
    "content",
    "label",
    "choices",
    "answer",
    "facts",
    "conversations",
    "from",
    "value",
    "prompt",
    "completion",
    "history",
    "tests",
    "text",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["user", "assistant", "human", "gpt", "A"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(FIELDS), inner),
    max_leaves=8,
)
TABLES = st.lists(st.dictionaries(st.sampled_from(FIELDS) | st.text(), VALUES), min_size=1, max_size=3)
CONTENTS = (
    st.tuples(st.just("json"), TABLES.map(json.dumps).map(str.encode))
    | st.tuples(st.just("jsonl"), TABLES.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()))
    | st.tuples(
        st.sampled_from(["json", "jsonl", "csv", "TSV", "parquet", "jsonl.gz"]),
        st.binary() | st.text().map(str.encode),
    )
)


def refused(read: Callable[..., Any], *words: Any) -> tuple[str, Any]:
    """The error for users, or "", and what was read."""
    try:
        return "", read(*words)
    except UserError as error:
        return str(error), None


@given(CONTENTS)
@settings(deadline=None)
def test_whatever_stands_in_a_file_is_an_example_or_named_by_file_and_place(content: tuple[str, bytes]):
    """Any bytes, and any values under any of the keys; an example has an instruction and a response."""
    suffix, data = content
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"rows.{suffix}"
        path.write_bytes(data)
        refusal, records = refused(read_file, path, "d")
    assert str(path) in refusal or records
    for record in records or ():
        assert record.example.instruction.strip() and record.example.response.strip()
        assert not record.example.choices or record.example.label in ("", *record.example.choices)
        assert all(isinstance(text, str) for pair in record.example.history for text in pair)


@settings(deadline=None)
@given(st.binary() | st.text().map(str.encode) | TABLES.map(json.dumps).map(str.encode))
def test_whatever_stands_in_a_recipe_a_node_file_or_a_record_is_read_or_named(data: bytes):
    with tempfile.TemporaryDirectory() as place:
        for name, read in (
            ("recipe.toml", load_settings),
            ("node.toml", read_node_file),
            ("record.json", read_json),
            ("events.jsonl", read_lines),
        ):
            path = Path(place) / name
            path.write_bytes(data)
            refusal, _ = refused(read, path)
            assert not refusal or name in refusal


def test_no_damaged_adapter_is_loaded_or_answered_with_a_traceback(
    tmp_path: Path, often: Callable[[int, int], int], record: Callable[..., None]
):
    import torch

    from fedsdr.config import Lora
    from fedsdr.model.adapter_files import save_adapter

    rng, num = random.Random(1), often(50, 500)
    save_adapter(tmp_path, {key: torch.from_numpy(value) for key, value in SENT.items()}, Lora(rank=2), "m")
    path = tmp_path / "adapter_model.safetensors"
    refused = count_refused(load_adapter, path, num, rng, loaded=tmp_path)
    record(fault="random bad adapter", num=num, lost=f"no traceback; {refused} refused")
    assert refused > num / 3


def test_no_damaged_file_of_a_clients_or_the_servers_own_is_answered_with_a_traceback(
    tmp_path: Path, often: Callable[[int, int], int], record: Callable[..., None]
):
    rng, num = random.Random(4), often(50, 500)
    arrays = save({key: np.arange(6, dtype=np.float32) for key in "ab"})
    account = json.dumps({"0123": 4.0, "4567": 8.0}).encode()
    node = json.dumps({"key": "k", "node-id": 7}).encode()
    for name, good, read in (
        ("round-0001/kept.safetensors", arrays, lambda path: load_state(tmp_path, 2, has_adapter=False)),
        (
            "server/round-0001/optimizer.safetensors",
            arrays,
            lambda path: load_moments(RunFolder(tmp_path), 1),
        ),
        ("releases.json", account, lambda path: Ledger(path, 1e3, 1e-5).enter(b"x", 1e6)),
        ("nodes/bank.json", node, lambda path: registered(str(path.parent))),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(good)
        read(path)
        path.write_bytes(good)
        refused = count_refused(read, path, num, rng)
        assert refused > num / 20, name
        record(
            fault=f"random bad {name}",
            num=num,
            lost=f"no traceback; {refused} refused, the rest was still good",
        )


def saved(value: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value)
    return stream.getvalue()


def values(rng: random.Random) -> Any:
    """A metric as a client may send it."""
    return rng.choice([0, 1, 5, -1, 2**62, 0.5, float("nan"), float("inf"), -0.5, [1, 2], [0.5]])


SCORES = {"round": 1, "seconds": 1.0} | {
    f"eval/x/{name}@global": value
    for name, value in {
        "num_examples": 5, "num_scored": 5, "score": 0.5, "unsupported_rate": 0.2, "words": 9.0,
        "filler_rate": 0.1, "redundancy": 0.0, "cut_off_rate": 0.0,
    }.items()
}  # fmt: skip
ROUND = (5, 1, True)
PREPARED = {"num_train": 5, "num_test": 2, "seconds": 1.0}


def altered(good: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Up to two of the numbers another, or gone, and perhaps one more."""
    changed = dict(good)
    for key in rng.sample(sorted(good), rng.randint(0, 2)):
        if rng.random() < 0.3:
            del changed[key]
        else:
            changed[key] = values(rng)
    if rng.random() < 0.2:
        changed[rng.choice(["prompt", "eval/mean/score@global", "eval/x/loss@global"])] = values(rng)
    return changed


@pytest.fixture
def asked(flower_task: None) -> Message:
    question = Message(RecordDict(), 7, "train", group_id="1")
    question.metadata.__dict__["_message_id"] = "question"
    return question


def test_the_guard_refuses_random_replies_with_a_reason(
    asked: Message, often: Callable[[int, int], int], record: Callable[..., None]
):
    """Arrays of any bytes, keys and values of any kind; what passes is finite, of the shape that was sent."""
    rng, num = random.Random(2), often(300, 3_000)
    good = saved(wire.pack(SENT))
    names = ["values", "scales", "control_variates", "shared", "../../x", "", "värde"]
    keys = [
        "round",
        "num_examples",
        "train/shared/loss",
        "seconds",
        "eval/x/score@global",
        "prompt",
        "num_train",
    ]
    passed = 0
    for _ in range(num):
        arrays = {
            rng.choice(names[:1] * 9 + names): Array(
                rng.choice(["float32", "float64", "object", "?"]),
                tuple(rng.choice([(12,), (1,), (3, 4), (2**40,), ()])),
                rng.choice(["numpy.ndarray", "pickle"]),
                mutated(good, rng) if rng.random() < 0.8 else good,
            )
            for _ in range(rng.randint(1, 2))
        }
        metrics = {"round": 1, "num_examples": 5, "seconds": 1.0} | {
            rng.choice(keys): values(rng) for _ in range(rng.randint(0, 3))
        }
        record_dict = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)}
        if rng.random() < 0.1:
            record_dict["client"] = ConfigRecord({"id": "x" * rng.randint(0, 99)})
        reply = Message(RecordDict(record_dict), reply_to=asked)
        try:
            update = check_reply(reply, "a", 5, SENT, "float32", 1, 1e4)
        except Rejected:
            pass
        else:
            passed += 1
            assert all(np.isfinite(value).all() for value in update.arrays.values())
            assert {key: value.shape for key, value in update.arrays.items()} == {
                key: value.shape for key, value in SENT.items()
            }
        scores = altered(SCORES, rng)
        with suppress(Rejected):
            numbers = check_scores(
                Message(RecordDict({"metrics": MetricRecord(scores)}), reply_to=asked), *ROUND, 100
            )
            passed += 1
            assert numbers["eval/x/num_examples@global"] == 5 and 0 <= numbers["eval/x/score@global"] <= 1
        client = {
            "id": rng.choice(["a", "a", "..", "", "x/y", "a" * 99]),
            "model": rng.choice(["m", "m", "n"]),
        }
        prepared = {"client": ConfigRecord(client), "metrics": MetricRecord(altered(PREPARED, rng))}
        with suppress(Rejected):
            name, numbers = check_prepared(Message(RecordDict(prepared), reply_to=asked), "m", 100)
            passed += 1
            assert name == "a" and numbers["num_train"] >= 1 and numbers["num_test"] >= 0
    assert 0 < passed < num
    record(
        fault="random bad replies to the guard",
        num=3 * num,
        lost=f"no traceback; {passed} were sound and used",
    )


def test_no_override_is_answered_with_a_traceback(
    often: Callable[[int, int], int], record: Callable[..., None]
):
    rng, num = random.Random(3), often(200, 2_000)
    known = [
        f"{name}.{key}"
        for name, section in Settings()
        if isinstance(section, Section)
        for key in type(section).model_fields
    ]
    texts = [
        "",
        "1",
        "-1",
        "0",
        "1e999",
        "nan",
        "[]",
        "{}",
        "[1]",
        '"x"',
        "true",
        "x",
        "[[",
        "2026-01-01",
        '["a", 1]',
        "{a=1}",
    ]
    refused = 0
    for _ in range(num):
        words = [f"{rng.choice(known)}={rng.choice(texts)}" for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.2:
            words.append(mutated(b"client.learning_rate=1e-4", rng).decode("utf-8", "replace"))
        try:
            load_settings(None, words)
        except UserError:
            refused += 1
    assert refused > num / 2
    record(
        fault="random bad settings", num=num, lost=f"no traceback; {refused} refused, the rest was allowed"
    )
