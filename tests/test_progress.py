"""Progress in a log: it begins after a while and does not end in the middle."""

import pytest

from fedsdr import progress


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line comes at once, the next ones never."""
    monkeypatch.setattr(progress, "quiet", False)
    monkeypatch.setattr(progress, "SHOW_AFTER", 0.0)
    monkeypatch.setattr(progress, "LOG_EVERY", 1e9)


def test_the_last_line_of_a_log_says_that_all_is_done(capsys: pytest.CaptureFixture[str]):
    """Went wrong once: a log ended at 32/48, as if a third had been left out."""
    assert list(progress.track("abc", "rewriting law", "examples", sizes=[32, 8, 8])) == ["a", "b", "c"]
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("  rewriting law: 32/48 examples, ")
    assert last.startswith("  rewriting law: 48/48 examples, ")


def test_quiet_work_and_quick_work_say_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "quiet", True)
    assert list(progress.track("abc", "rewriting law", "examples")) == ["a", "b", "c"]
    monkeypatch.setattr(progress, "quiet", False)
    monkeypatch.setattr(progress, "SHOW_AFTER", 1e9)
    assert list(progress.track("abc", "rewriting law", "examples")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
