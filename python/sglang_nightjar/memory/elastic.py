"""The interface of elastic buffers: a range of addresses that stays, of which a prefix is backed by memory.

CUDA graphs, the stacks of the CPU engine and attention backends keep raw addresses of weights and KV caches. So memory
that is to be given back must go without its addresses: they are reserved once, backed while needed (`commit`), and
unbacked (`release`). Touching an address that is not backed faults, on a CPU as on a GPU.
"""

import abc
import math
from collections.abc import Sequence

import torch


class MemoryRefusedError(RuntimeError):
    """The system has no memory for a commit. The buffer is as it was."""


class ElasticBuffer(abc.ABC):
    """One range of addresses, backed from its start up to ``committed``.

    Attributes:
        address: its first byte; never changes.
        reserved: its length in bytes, a multiple of ``granularity``.
        committed: bytes that are backed, from the start; a multiple of ``granularity``.
        granularity: the smallest piece that can be backed or released, in bytes.
    """

    def __init__(self, address: int, reserved: int, granularity: int, device: torch.device):
        self.address, self.reserved, self.granularity = address, reserved, granularity
        self.device = device
        self.committed = 0

    def commit(self, nbytes: int) -> None:
        """Back at least the first ``nbytes``; what is backed keeps its contents, and new memory may hold anything.

        Raises MemoryRefusedError, with the buffer as before, and ValueError for more than is reserved.
        """
        wanted = self._rounded(nbytes)
        if wanted > self.committed:
            self._back(self.committed, wanted)
            self.committed = wanted

    def release(self, nbytes: int) -> None:
        """Give back what lies behind the first ``nbytes``, as far as whole pieces do. Its contents are lost.

        On a GPU nothing may still be reading or writing there: the caller synchronises first.
        """
        kept = self._unback(self._rounded(nbytes))
        self.committed = min(self.committed, kept)

    def tensor(self, dtype: torch.dtype, shape: Sequence[int], offset: int = 0) -> torch.Tensor:
        """A contiguous tensor over the bytes from ``offset``, backed or not. It does not keep the buffer alive."""
        nbytes = math.prod(shape) * dtype.itemsize
        if offset < 0 or offset + nbytes > self.reserved:
            raise ValueError(f"bytes {offset} to {offset + nbytes} are outside of the {self.reserved} reserved ones")
        # As torch's own CUDA graph trees do; unlike from_blob, this does not look at the memory.
        storage = torch._C._construct_storage_from_data_pointer(self.address + offset, self.device, nbytes)
        return torch.empty(0, dtype=dtype, device=self.device).set_(storage, 0, tuple(shape))

    @abc.abstractmethod
    def close(self) -> None:
        """Give everything back, the addresses too."""

    @abc.abstractmethod
    def _back(self, start: int, end: int) -> None:
        """Back bytes ``start`` to ``end``; all of them, or raise MemoryRefusedError."""

    @abc.abstractmethod
    def _unback(self, start: int) -> int:
        """Give back what can be of what lies behind ``start``; return where what is backed ends now at the latest."""

    def _rounded(self, nbytes: int) -> int:
        if not 0 <= nbytes <= self.reserved:
            raise ValueError(f"{nbytes} bytes of a buffer with {self.reserved} reserved ones")
        return -(-nbytes // self.granularity) * self.granularity


def reserve(nbytes: int, device: torch.device, huge_bytes: int = 0) -> ElasticBuffer:
    """A buffer of at least ``nbytes`` addresses on ``device`` (CPU or CUDA), nothing of it backed.

    Its first ``huge_bytes`` prefer huge pages on a CPU; a GPU has no others.
    """
    if device.type == "cpu":
        from sglang_nightjar.memory.posix import PosixBuffer

        return PosixBuffer(nbytes, huge_bytes)
    if device.type == "cuda":
        from sglang_nightjar.memory.cuda import CudaBuffer

        index = device.index if device.index is not None else torch.cuda.current_device()
        return CudaBuffer(nbytes, index)
    raise ValueError(f"no elastic memory on device {device}; there is for cpu and cuda")
