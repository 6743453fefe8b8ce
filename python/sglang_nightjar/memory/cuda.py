"""Elastic buffers in GPU memory: the driver's virtual memory functions, through ``cuda.bindings``.

Each growth is one allocation of its own, mapped whole, because some GPUs refuse to map parts of one. It can only be
given back whole, so `release` keeps an allocation of which anything is still wanted. CUDA graphs captured over the
range stay valid: they hold addresses. This has not run on a GPU yet; its tests use a fake driver.
"""

import contextlib
from typing import Any

import torch

from sglang_nightjar.memory.elastic import ElasticBuffer, MemoryRefusedError


def driver() -> Any:
    """The driver's functions. Imported here only: the package comes with CUDA builds of torch."""
    from cuda.bindings import driver as found

    return found


class CudaBuffer(ElasticBuffer):
    """On the GPU with the given index; the caller's thread needs a CUDA context (torch has made one)."""

    def __init__(self, nbytes: int, device_index: int):
        self._driver = driver()
        self._properties = _properties(self._driver, device_index)
        piece = _granularity(self._driver, self._properties)
        reserved = max(piece, -(-nbytes // piece) * piece)
        # Aligned to the granularity, so that every multiple of it is a place where memory can be mapped.
        [address] = _check(self._driver.cuMemAddressReserve(reserved, piece, 0, 0), "cuMemAddressReserve")
        super().__init__(int(address), reserved, piece, torch.device("cuda", device_index))
        self._access = self._driver.CUmemAccessDesc()
        self._access.location.type = self._driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._access.location.id = device_index
        self._access.flags = self._driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        #: (start, end, handle) of each allocation, in order.
        self._mapped: list[tuple[int, int, Any]] = []

    def close(self) -> None:
        if not self.reserved:
            return
        self._unback(0)
        _check(self._driver.cuMemAddressFree(self.address, self.reserved), "cuMemAddressFree")
        self.reserved = self.committed = 0

    def _back(self, start: int, end: int) -> None:
        size, place = end - start, self.address + start
        try:
            [handle] = _check(self._driver.cuMemCreate(size, self._properties, 0), "cuMemCreate")
        except RuntimeError:
            # What torch keeps for later is memory that the driver could give us.
            torch.cuda.empty_cache()
            try:
                [handle] = _check(self._driver.cuMemCreate(size, self._properties, 0), "cuMemCreate")
            except RuntimeError as error:
                raise MemoryRefusedError(f"{size} bytes of GPU memory were refused: {error}") from None
        try:
            _check(self._driver.cuMemMap(place, size, 0, handle, 0), "cuMemMap")
            try:
                _check(self._driver.cuMemSetAccess(place, size, [self._access], 1), "cuMemSetAccess")
            except RuntimeError:
                with contextlib.suppress(RuntimeError):
                    _check(self._driver.cuMemUnmap(place, size), "cuMemUnmap")
                raise
        except RuntimeError as error:
            with contextlib.suppress(RuntimeError):
                _check(self._driver.cuMemRelease(handle), "cuMemRelease")
            raise MemoryRefusedError(f"{size} bytes of GPU memory could not be mapped: {error}") from None
        self._mapped.append((start, end, handle))

    def _unback(self, start: int) -> int:
        while self._mapped and self._mapped[-1][0] >= start:
            first, end, handle = self._mapped[-1]
            _check(self._driver.cuMemUnmap(self.address + first, end - first), "cuMemUnmap")
            self._mapped.pop()
            _check(self._driver.cuMemRelease(handle), "cuMemRelease")
        return self._mapped[-1][1] if self._mapped else 0


def _properties(found: Any, device_index: int) -> Any:
    properties = found.CUmemAllocationProp()
    properties.type = found.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = found.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = device_index
    return properties


def _granularity(found: Any, properties: Any) -> int:
    minimum = found.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    [size] = _check(found.cuMemGetAllocationGranularity(properties, minimum), "cuMemGetAllocationGranularity")
    return int(size)


def _check(result: Any, what: str) -> tuple[Any, ...]:
    """The values behind the error code. Raises RuntimeError that names the function."""
    code, *values = result if isinstance(result, tuple) else (result,)
    if int(code) != 0:
        raise RuntimeError(f"{what}: {code!r}")
    return tuple(values)
