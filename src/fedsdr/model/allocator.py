"""Memory of this process: keep freed pages for the next step, and reset the peak for the next run.

Training frees and allocates the same large blocks at every step. Mapping and clearing them again costs more
than some of the arithmetic (docs/performance.md), and glibc would return them to the kernel each time.
"""

import ctypes
import gc
import platform
from pathlib import Path

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_pages() -> bool:
    """Make glibc serve large blocks from its heap without trimming it; False on other platforms."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def forget_peak() -> bool:
    """Return unused pages and reset the peak memory (`ru_maxrss`); False if the system cannot."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
