"""Allocator settings for training on a CPU."""

import ctypes
import sys

# <malloc.h>
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> None:
    """Have glibc reuse the memory of freed tensors instead of giving it back to the kernel; elsewhere do nothing.

    A training step frees and takes hundreds of buffers of megabytes. By default each is mapped anew, and the kernel
    zeroing its pages took half of the step's time (2.4 s against about 4.5 s on one core). Batches of ever other shapes
    leave holes, so `give_back_memory` is due now and then: without it a process grew from 4 to 12 GB in 500 steps.
    Reading 128 prompts of 128 tokens took 9.0 instead of 14.4 s.
    """
    if libc := _glibc():
        libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_memory() -> None:
    """Return every page of freed memory to the kernel."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None
