"""Progress: silent until a program asks, then messages and bars, each with the name of what is being done."""

import logging
import subprocess
import sys

import pytest

from fedsdr import progress


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bar shows itself at every item."""
    make = progress._Bar.__init__
    now = {"delay": 1e-9, "mininterval": 0.0}
    monkeypatch.setattr(progress._Bar, "__init__", lambda self, **options: make(self, **options | now))


def test_a_log_has_lines_that_say_where_the_work_is(impatient: None, capsys: pytest.CaptureFixture[str]):
    with progress.within("round 3, math"), progress.within("shared on raw"):
        assert list(progress.track("abc", "steps", sizes=[32, 8, 8])) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for line, done in zip(lines, ("32/48", "40/48", "48/48"), strict=True):
        assert line.startswith("  round 3, math: shared on raw: ")
        assert done in line


def test_a_name_holds_for_its_block_alone():
    with progress.within("outer"):
        with progress.within("inner"):
            assert progress.here() == "outer: inner"
        assert progress.here() == "outer"
    assert progress.here() == ""


def test_quick_work_shows_no_bar(capsys: pytest.CaptureFixture[str]):
    assert list(progress.track("abc", "steps", [1] * 3)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_quiet_leaves_warnings_alone(impatient: None, capsys: pytest.CaptureFixture[str]):
    progress.show(quiet=True)
    progress.say("nothing")
    assert list(progress.track("abc", "steps", [1] * 3)) == ["a", "b", "c"]
    progress.log.warning("something")
    assert capsys.readouterr().err == "something\n"


def test_messages_are_written_once_and_not_by_the_root_logger_too(capsys: pytest.CaptureFixture[str]):
    progress.show()
    logging.getLogger().addHandler(handler := logging.StreamHandler(sys.stderr))
    progress.say("100 % done")
    logging.getLogger().removeHandler(handler)
    assert capsys.readouterr().err == "100 % done\n"


def test_a_program_that_imports_the_package_sees_nothing_until_it_asks():
    code = "from fedsdr.progress import say, show; say('before'); show(); say('after')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "after\n")
