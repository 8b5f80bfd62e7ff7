"""The peak memory of a run is its own, or unknown."""

from pathlib import Path

import pytest

from fedsdr.model import allocator


def test_where_the_peak_cannot_be_reset_only_a_higher_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(allocator, "CLEAR_REFS", tmp_path / "none" / "clear_refs")
    monkeypatch.setattr(allocator, "_earlier", 0)
    monkeypatch.setattr(allocator, "_peak", lambda: 100)
    assert not allocator.can_forget_peak()
    assert allocator.peak_memory() == 100
    allocator.forget_peak()
    assert allocator.peak_memory() is None
    monkeypatch.setattr(allocator, "_peak", lambda: 200)
    assert allocator.peak_memory() == 200
