"""Keep freed memory pages for the next step; glibc would return them to the kernel each time.

Training frees and allocates the same large blocks at every step. Mapping and clearing them again costs more
than some of the arithmetic (docs/performance.md).
"""

import ctypes
import platform

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_pages() -> bool:
    """Make glibc serve large blocks from its heap without trimming it; False on other platforms."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
