"""Allocator settings for training on a CPU."""

import ctypes
import sys

# <malloc.h>
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> None:
    """Have glibc reuse the memory of freed tensors instead of giving it back to the kernel; elsewhere do nothing.

    A training step frees and takes hundreds of buffers of megabytes. By default each is mapped anew, and the kernel
    zeroing its pages took half of the step's time (2.4 s against about 4.5 s on one core). Not for generating: caches of
    ever other sizes would leave holes, and the process would grow to twice its need.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
