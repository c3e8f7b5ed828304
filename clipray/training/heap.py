"""The memory that a step frees: kept for the next, which needs as much.

By itself glibc gives large blocks back to the kernel, and gets them again page by page: thousands
of page faults a second, 3 % of a step on CPUs.
"""

import ctypes

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MOST = 2**31 - 1
HEAP_BYTES = 64 << 20  # a heap of a thread has so many at most, and with such a pad is kept whole


def keep_freed() -> None:
    """Have this process keep what it frees, where the C library is glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_TRIM_THRESHOLD, MOST)
        mallopt(M_TOP_PAD, HEAP_BYTES)
        mallopt(M_MMAP_THRESHOLD, MOST)
