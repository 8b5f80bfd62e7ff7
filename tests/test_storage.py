"""Files after a kill: the old content or the new, and never a part."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.storage import append_lines, content_hash, read_lines, rewrite_lines, write_file, write_folder

RECORDS = [{"round": 1, "text": "two\nlines é"}, {"round": 2, "text": ""}]


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "new" / "config.toml"
    write_file(path, "old")

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_file(path, b"new")
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["config.toml"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "server" / "round-0003"

    def torn(folder: Path) -> None:
        (folder / "a").write_text("1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(path, torn)
    assert not path.exists()
    write_folder(path, lambda folder: (folder / "b").write_text("2"))
    assert [file.name for file in path.iterdir()] == ["b"]  # nothing of the torn one
    with pytest.raises(KeyboardInterrupt):
        write_folder(path, torn)
    assert [file.name for file in path.iterdir()] == ["b"]  # the old one is still whole
    write_folder(path, lambda folder: (folder / "c").write_text("3"))
    assert [file.name for file in path.iterdir()] == ["c"]


def test_a_log_gives_back_what_was_appended(tmp_path: Path):
    path = tmp_path / "clients" / "a" / "log.jsonl"
    assert read_lines(path) == []
    append_lines(path, RECORDS[:1])
    append_lines(path, RECORDS[1:])
    assert read_lines(path) == RECORDS
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2
    rewrite_lines(path, RECORDS[1:])
    assert read_lines(path) == RECORDS[1:]


@given(st.integers(0, 200))
def test_a_log_cut_at_any_byte_gives_its_whole_lines(tmp_path_factory, size: int):
    """The cut may fall inside a letter of two bytes."""
    lines = [json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in RECORDS]
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    path.write_bytes(b"".join(lines)[:size])
    num_whole = (size >= len(lines[0])) + (size >= len(lines[0] + lines[1]))
    assert read_lines(path) == RECORDS[:num_whole]


def test_a_hash_follows_the_content_and_not_its_order_or_kind_of_sequence():
    assert content_hash({"a": 1, "b": (2, "é")}) == content_hash({"b": [2, "é"], "a": 1})
    different = [content_hash("ab"), content_hash("a", "b"), content_hash(["a", "b"]), content_hash("a", 1)]
    assert len(set(different)) == len(different)
    assert all(len(found) == 16 and int(found, 16) >= 0 for found in different)
