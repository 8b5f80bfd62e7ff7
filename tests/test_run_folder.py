"""What is where in a run's folder."""

from pathlib import Path

import pytest

from fedsdr.errors import UserError
from fedsdr.run_folder import RunFolder, list_rounds, read_settings, round_folder


def test_rounds_are_numbered_folders_and_nothing_that_looks_like_them(tmp_path: Path):
    assert list_rounds(tmp_path / "none") == []
    for number in (10_000, 3, 0):
        round_folder(tmp_path, number).mkdir()
    for name in ("round-0004.bak", "round-0005 copy", "round-6", "old-round-0007", ".round-0008.1.aside"):
        (tmp_path / name).mkdir()
    (tmp_path / "round-0009").touch()
    assert list_rounds(tmp_path) == [0, 3, 10_000]
    assert round_folder(tmp_path, 3).name == "round-0003"


def test_the_evaluations_of_a_run_are_found_by_their_rounds(tmp_path: Path):
    folder = RunFolder(tmp_path)
    assert folder.evaluations() == {}
    for number in (10_000, 0, 3):
        folder.evaluation(number).parent.mkdir(exist_ok=True)
        folder.evaluation(number).write_text('{"global": {}}')
    assert folder.evaluations() == {number: {"global": {}} for number in (0, 3, 10_000)}


def test_a_folder_of_runs_is_no_run_and_its_runs_are_named(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.toml").touch()
    with pytest.raises(
        UserError, match=f"contains no run: config.toml is missing; runs in it: {tmp_path}/a$"
    ):
        read_settings(tmp_path)
    with pytest.raises(
        UserError, match=f"it lies in the run {tmp_path}/a: name that, and a round by --round"
    ):
        read_settings(tmp_path / "a" / "server" / "round-0002")


def test_the_folder_of_a_grid_is_no_run_and_its_first_runs_are_named(tmp_path: Path):
    (tmp_path / "grid.json").touch()
    for place in ("a/seed-0", "a/seed-1", "b/seed-0", "b/seed-1", "a/rate-0.1"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.toml").touch()
    first = ", ".join(f"{tmp_path}/{place}" for place in ("a/seed-0", "a/seed-1", "b/seed-0"))
    with pytest.raises(UserError, match=f"^{tmp_path} is the folder of a grid; runs in it: {first}, ...$"):
        read_settings(tmp_path)


def test_internal_files_are_hidden_but_those_of_an_older_run_are_found(tmp_path: Path):
    new, old = RunFolder(tmp_path / "new"), tmp_path / "old"
    (old / "clients/a").mkdir(parents=True)
    for name in ("nonce", "clients/a/data.hash"):
        (old / name).write_text("as it was")
    assert RunFolder(old).nonce.read_text() == RunFolder(old).client("a").data_hash.read_text() == "as it was"
    for path in (new.nonce, new.ended, new.client("a").data_hash, new.client("a").noise_key):
        assert path.name.startswith(".")
