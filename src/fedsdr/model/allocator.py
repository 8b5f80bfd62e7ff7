"""Keep freed memory pages for the next step, where glibc hands them back to the kernel each time.

Training frees and takes the same large blocks at every step; mapping and clearing them anew costs
more than some of the arithmetic (docs/performance.md).
"""

import ctypes
import platform

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_pages() -> bool:
    """Tell glibc to serve large blocks from its heap and not to trim it; False elsewhere."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
