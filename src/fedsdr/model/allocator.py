"""Memory of this process: keep freed pages for the next step, and count the peak anew for the next run.

Training frees and takes the same large blocks at every step; mapping and clearing them anew costs
more than some of the arithmetic (docs/performance.md), and glibc hands them back to the kernel each time.
"""

import ctypes
import gc
import platform
from pathlib import Path

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_pages() -> bool:
    """Tell glibc to serve large blocks from its heap and not to trim it; False elsewhere."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def forget_peak() -> bool:
    """Hand unused pages back and count the peak of memory (`ru_maxrss`) from now on; False where none can."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
