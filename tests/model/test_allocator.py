"""The peak memory of a run is its own, or unknown."""

from pathlib import Path

import psutil
import pytest
import torch

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


def test_pages_that_are_kept_for_the_next_step_are_returned_when_other_work_begins():
    """Rewriting, training and answering have blocks of other sizes; their memory once added up."""
    if not allocator.keep_pages():
        pytest.skip("only glibc keeps them on request")
    resident = psutil.Process().memory_info
    allocator.return_pages()
    before, size = resident().rss, 200_000_000
    block = torch.ones(size // 4)
    del block
    assert resident().rss > before + size / 2
    allocator.return_pages()
    assert resident().rss < before + size / 4
