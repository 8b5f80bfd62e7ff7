"""Progress: silent until a program enables it, then messages and bars, each with the name of the current work."""

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


def test_the_time_left_is_that_of_each_kind_of_work(monkeypatch: pytest.MonkeyPatch):
    """Two of four trainings took 10 s each, and the base model's evaluation 4 s: 2 x 10 + 4 s are left."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    total = progress.Total({"prepare": 0, "train": 4, "evaluate": 2}, {"train": [], "prepare": [60.0]})
    assert total.text() == ""
    total.begin("evaluate")
    now[0] += 4
    total.done("evaluate")
    assert total.text() == "more than 4 s left"  # training is not known yet
    for _ in range(2):
        now[0] += 10
        total.done("train")
    assert total.text() == "about 24 s left"
    resumed = progress.Total({"train": 2, "evaluate": 1}, {"train": [10.0], "evaluate": [4.0]})
    assert resumed.text() == "about 24 s left"
    for kind in ("train", "train", "evaluate"):
        resumed.done(kind)
    assert resumed.text() == ""


def test_the_loss_of_the_last_step_stands_at_the_end_of_the_bar(
    impatient: None, capsys: pytest.CaptureFixture[str]
):
    progress.note("no bar")
    for number in progress.track(range(2), "steps", [1] * 2):
        progress.note(f"loss {number}.5")
    assert [line.rpartition(", ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "loss 0.5]",
        "loss 1.5]",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(9, "9 s"), (339, "5 min 39 s"), (7500, "2 h 5 min")])
def test_times_are_written_in_two_units(seconds: float, text: str):
    assert progress.duration(seconds) == text
