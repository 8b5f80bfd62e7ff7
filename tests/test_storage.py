"""Files after a kill: the old content or the new, and never a part."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.errors import UserError
from fedsdr.storage import (
    append_lines,
    content_hash,
    locked,
    read_json,
    read_lines,
    rewrite_lines,
    write_file,
    write_folder,
    write_json,
)

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


def test_what_a_killed_process_left_aside_is_cleared_when_the_folder_is_written_again(tmp_path: Path):
    left = tmp_path / ".round-0003.999999.aside"
    left.mkdir()
    (left / "half").touch()
    (tmp_path / ".round-0004.999999.aside").mkdir()
    write_folder(tmp_path / "round-0003", lambda folder: (folder / "a").touch())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".round-0004.999999.aside", "round-0003"]


def test_two_processes_that_write_one_file_do_not_take_each_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The second one writes and renames between the first one's writing and renaming."""
    path = tmp_path / "answers.jsonl"
    replace = Path.replace

    def overtaken(aside: Path, to: Path) -> None:
        monkeypatch.undo()
        monkeypatch.setattr("os.getpid", lambda: 999_999)
        write_file(path, "second")
        assert path.read_text() == "second"
        replace(aside, to)

    monkeypatch.setattr(Path, "replace", overtaken)
    write_file(path, "first")
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]


def test_a_link_that_another_user_laid_where_a_file_is_written_aside_is_not_followed(tmp_path: Path):
    """In a folder that others may write to, it would have put the content, or an empty file, where it points to."""
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / f".new.{os.getpid()}.aside").symlink_to(victim)
    write_file(tmp_path / "new", "secret")
    assert victim.read_text() == "kept" and (tmp_path / "new").read_text() == "secret"
    assert not (tmp_path / "new").is_symlink()
    (tmp_path / ".new.lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"), locked(tmp_path / "new"):
        pass
    assert victim.read_text() == "kept"


def test_a_folder_is_on_disk_before_its_new_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else power may fail when the run counts on a round whose folder is empty, or not there."""
    done: list[int | str] = []
    rename = Path.rename

    def renamed(path: Path, to: Path) -> None:
        done.append("renamed")
        rename(path, to)

    monkeypatch.setattr("os.fsync", lambda file: done.append(os.fstat(file).st_ino))
    monkeypatch.setattr(Path, "rename", renamed)
    path = tmp_path / "round-0003"
    write_folder(path, lambda folder: (folder / "a").touch())
    file, folder, parent = ((tmp_path / name).stat().st_ino for name in ("round-0003/a", "round-0003", ""))
    assert done == [file, folder, "renamed", parent]


def test_a_damaged_document_is_named(tmp_path: Path):
    path = tmp_path / "environment.json"
    write_json(path, {"torch": "é"})
    assert read_json(path) == {"torch": "é"}
    for damaged in (b"", path.read_bytes()[:-4], b'"\xff"'):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"environment\.json: found no JSON document"):
            read_json(path)


@pytest.mark.parametrize("damaged", ["", '{"round": 1', "\0\0\0"])
def test_a_damaged_whole_line_is_named_with_its_number_and_not_its_content(tmp_path: Path, damaged: str):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"round": 0}}\n{damaged}\n{{"round": 2}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: found no JSON") as error:
        read_lines(path)
    assert "round" not in str(error.value)


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


COUNT = """
import sys
from pathlib import Path
from fedsdr.storage import locked
counter = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with locked(counter):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_one_process_at_a_time_has_a_lock_and_no_lock_file_is_left(tmp_path: Path):
    """Each removes the lock file while others wait for it, which must not let two of them in."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNT, str(counter), "20"]
    others = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(3)]
    assert [other.wait() for other in others] == [0, 0, 0]
    assert counter.read_text() == "60"
    assert list(tmp_path.iterdir()) == [counter]


def test_a_lock_that_is_given_up_while_its_holder_is_looked_up_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    held = FileLock(tmp_path / ".lock")
    held.acquire()

    def given_up(_: Path) -> str:
        held.release()
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", given_up)
    with locked(tmp_path, patience=1):
        assert (tmp_path / ".lock").read_bytes() == str(os.getpid()).encode()
