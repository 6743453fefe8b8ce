"""Elastic buffers in a process's own memory: mmap reserves, mprotect opens and closes, madvise gives pages back."""

import ctypes
import mmap
import os

import torch

from sglang_nightjar.memory.elastic import ElasticBuffer, MemoryRefusedError

PAGE = mmap.PAGESIZE

_HUGE_PAGE = 2 << 20
_PROT_NONE = 0
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_MAP_NORESERVE = 0x4000
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class PosixBuffer(ElasticBuffer):
    """Committed memory is zero at first, and takes physical pages as it is touched; released pages leave at once.

    The first ``huge_bytes`` ask for huge pages, as far as whole ones fit; that suits what is given back whole or never.
    Of a huge page that is given back in part, Linux keeps the whole for a while.
    """

    def __init__(self, nbytes: int, huge_bytes: int = 0):
        reserved = max(PAGE, -(-nbytes // PAGE) * PAGE)
        slack = _HUGE_PAGE if huge_bytes else 0
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        start = _libc.mmap(None, reserved + slack, _PROT_NONE, flags, -1, 0)
        if start == _FAILED:
            raise MemoryRefusedError(f"no {reserved} bytes of addresses: {_error()}")
        self._mapping = (start, reserved + slack)
        address = start
        if huge_bytes:
            address = -(-start // _HUGE_PAGE) * _HUGE_PAGE
            # A system without them refuses, and goes on with small ones.
            _libc.madvise(address, min(huge_bytes, reserved), mmap.MADV_HUGEPAGE)
        super().__init__(address, reserved, PAGE, torch.device("cpu"))

    def close(self) -> None:
        if self.reserved:
            _libc.munmap(*self._mapping)
            self.reserved = self.committed = 0

    def _back(self, start: int, end: int) -> None:
        if _libc.mprotect(self.address + start, end - start, _READ_WRITE) != 0:
            raise MemoryRefusedError(f"{end - start} bytes were refused: {_error()}")

    def _unback(self, start: int) -> int:
        if start < self.committed:
            place, length = self.address + start, self.committed - start
            # Protected first: what writes here by mistake must fault, and not quietly take pages again.
            for done in (_libc.mprotect(place, length, _PROT_NONE), _libc.madvise(place, length, mmap.MADV_DONTNEED)):
                if done != 0:
                    raise OSError(ctypes.get_errno(), f"{length} bytes could not be given back: {_error()}")
        return start


def _error() -> str:
    return os.strerror(ctypes.get_errno())


def resident_bytes(address: int, nbytes: int) -> int:
    """How much of a range is in physical memory, in bytes (mincore)."""
    start = address // PAGE * PAGE
    length = -(-(address + nbytes - start) // PAGE) * PAGE
    seen = (ctypes.c_ubyte * (length // PAGE))()
    if _libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(length), seen) != 0:
        raise OSError(ctypes.get_errno(), f"mincore: {_error()}")
    return PAGE * sum(page & 1 for page in bytes(seen))
