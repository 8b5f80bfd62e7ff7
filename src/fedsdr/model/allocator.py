"""Memory of this process: keep freed pages for the next step, and reset the peak for the next run.

Training frees and allocates the same large blocks at every step. Mapping and clearing them again costs more
than some of the arithmetic (docs/performance.md), and glibc would return them to the kernel each time.
"""

import ctypes
import gc
import os
import platform
import resource
import sys
from pathlib import Path

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
CLEAR_REFS = Path("/proc/self/clear_refs")
"""Linux resets the peak memory when "5" is written here."""
_earlier = 0
"""Peak memory that could not be reset, in bytes."""


def keep_pages() -> bool:
    """Make glibc serve large blocks from its heap without trimming it; False on other platforms."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def return_pages() -> None:
    """Return unused pages to the system (glibc).

    Kept pages serve blocks of like sizes. Other work, such as training after rewriting, has blocks that do
    not fit between them, and its memory would come on top.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def can_forget_peak() -> bool:
    """Whether the system can reset the peak memory of a process (Linux)."""
    return os.access(CLEAR_REFS, os.W_OK)


def forget_peak() -> None:
    """Return unused pages and reset the peak memory; if the system cannot, remember the peak so far."""
    global _earlier
    gc.collect()
    return_pages()
    try:
        CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        _earlier = _peak()


def peak_memory() -> int | None:
    """Peak host memory of this process since `forget_peak`, in bytes; GPU memory is not counted.

    None if the system cannot reset it and the earlier peak was as high.
    """
    peak = _peak()
    return peak if peak > _earlier else None


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
