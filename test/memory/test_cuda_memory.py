"""Elastic buffers on a GPU, against a fake of the driver: the order of its calls, and what is left after refusals.

No GPU runs here. The fake keeps the driver's rules: memory is mapped where nothing is mapped, at multiples of the
granularity, within a reservation; it is unmapped as it was mapped, and released once.
"""

import enum
import types
from types import SimpleNamespace

import pytest

from sglang_nightjar.memory import cuda
from sglang_nightjar.memory.cuda import CudaBuffer
from sglang_nightjar.memory.elastic import MemoryRefusedError

PIECE = 2 << 20
BASE = 1 << 40


class Code(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2


class FakeDriver:
    """Attributes:
    memory: bytes that can be created.
    mapped: start -> (size, handle); ``usable`` are those with access.
    fails: names of functions that fail, and how many calls from now.
    """

    def __init__(self, memory: int = 64 * PIECE):
        self.memory = memory
        self.reserved: dict[int, int] = {}
        self.handles: dict[int, int] = {}
        self.mapped: dict[int, tuple[int, int]] = {}
        self.usable: set[int] = set()
        self.fails: dict[str, int] = {}
        self._next = 100
        self.CUmemAllocationProp = lambda: SimpleNamespace(location=SimpleNamespace())
        self.CUmemAccessDesc = lambda: SimpleNamespace(location=SimpleNamespace())
        self.CUmemAllocationType = SimpleNamespace(CU_MEM_ALLOCATION_TYPE_PINNED=1)
        self.CUmemLocationType = SimpleNamespace(CU_MEM_LOCATION_TYPE_DEVICE=1)
        self.CUmemAccess_flags = SimpleNamespace(CU_MEM_ACCESS_FLAGS_PROT_READWRITE=3)
        self.CUmemAllocationGranularity_flags = SimpleNamespace(CU_MEM_ALLOC_GRANULARITY_MINIMUM=0)

    def _refuses(self, name: str) -> bool:
        if name in self.fails:
            self.fails[name] -= 1
            if self.fails[name] < 0:
                del self.fails[name]
                return True
        return False

    def cuMemGetAllocationGranularity(self, properties, flag):
        assert properties.type == 1 and properties.location.id == 0
        return Code.CUDA_SUCCESS, PIECE

    def cuMemAddressReserve(self, size, alignment, address, flags):
        assert size % PIECE == 0 and alignment == PIECE
        self.reserved[BASE] = size
        return Code.CUDA_SUCCESS, BASE

    def cuMemAddressFree(self, address, size):
        assert self.reserved.pop(address) == size and not self.mapped
        return (Code.CUDA_SUCCESS,)

    def cuMemCreate(self, size, properties, flags):
        assert size % PIECE == 0 and size > 0
        if self._refuses("cuMemCreate") or sum(self.handles.values()) + size > self.memory:
            return Code.CUDA_ERROR_OUT_OF_MEMORY, None
        self._next += 1
        self.handles[self._next] = size
        return Code.CUDA_SUCCESS, self._next

    def cuMemMap(self, address, size, offset, handle, flags):
        if self._refuses("cuMemMap"):
            return (Code.CUDA_ERROR_INVALID_VALUE,)
        assert offset == 0 and self.handles[handle] == size, "an allocation is mapped whole"
        assert address >= BASE and address + size <= BASE + self.reserved[BASE] and (address - BASE) % PIECE == 0
        for start, (length, _) in self.mapped.items():
            assert address + size <= start or start + length <= address, "mapped already"
        self.mapped[address] = (size, handle)
        return (Code.CUDA_SUCCESS,)

    def cuMemSetAccess(self, address, size, access, count):
        if self._refuses("cuMemSetAccess"):
            return (Code.CUDA_ERROR_INVALID_VALUE,)
        assert self.mapped[address][0] == size and count == len(access) == 1 and access[0].flags == 3
        self.usable.add(address)
        return (Code.CUDA_SUCCESS,)

    def cuMemUnmap(self, address, size):
        assert self.mapped.pop(address)[0] == size
        self.usable.discard(address)
        return (Code.CUDA_SUCCESS,)

    def cuMemRelease(self, handle):
        assert all(handle != held for _, held in self.mapped.values()), "released while mapped"
        del self.handles[handle]
        return (Code.CUDA_SUCCESS,)


@pytest.fixture
def fake(monkeypatch) -> FakeDriver:
    made = FakeDriver()
    monkeypatch.setattr(cuda, "driver", lambda: made)
    monkeypatch.setattr(cuda, "torch", types.SimpleNamespace(device=lambda *_: None, cuda=SimpleNamespace(
        empty_cache=lambda: None)))  # fmt: skip
    return made


def test_grow_and_shrink_keep_the_addresses(fake: FakeDriver) -> None:
    buffer = CudaBuffer(9 * PIECE - 1, 0)
    assert (buffer.address, buffer.reserved, buffer.granularity) == (BASE, 9 * PIECE, PIECE)
    buffer.commit(3 * PIECE - 5)
    buffer.commit(3 * PIECE)
    buffer.commit(7 * PIECE)
    assert list(fake.mapped) == [BASE, BASE + 3 * PIECE] and set(fake.mapped) == fake.usable
    buffer.release(3 * PIECE)
    assert buffer.committed == 3 * PIECE and list(fake.mapped) == [BASE] and len(fake.handles) == 1
    buffer.commit(9 * PIECE)
    assert buffer.committed == 9 * PIECE
    buffer.close()
    assert not fake.handles and not fake.reserved
    buffer.close()


def test_an_allocation_of_which_something_is_wanted_stays(fake: FakeDriver) -> None:
    buffer = CudaBuffer(8 * PIECE, 0)
    buffer.commit(2 * PIECE)
    buffer.commit(6 * PIECE)
    buffer.release(4 * PIECE)
    assert buffer.committed == 6 * PIECE and len(fake.mapped) == 2
    buffer.release(2 * PIECE)
    assert buffer.committed == 2 * PIECE and len(fake.mapped) == 1


@pytest.mark.parametrize("function", ["cuMemMap", "cuMemSetAccess"])
def test_a_refusal_leaves_everything_as_it_was(fake: FakeDriver, function: str) -> None:
    buffer = CudaBuffer(8 * PIECE, 0)
    buffer.commit(2 * PIECE)
    before = (dict(fake.mapped), dict(fake.handles), set(fake.usable))
    fake.fails[function] = 0
    with pytest.raises(MemoryRefusedError, match=function):
        buffer.commit(4 * PIECE)
    assert buffer.committed == 2 * PIECE
    assert (fake.mapped, fake.handles, fake.usable) == before
    buffer.commit(4 * PIECE)
    assert buffer.committed == 4 * PIECE


def test_torchs_spare_memory_is_asked_for_before_giving_up(fake: FakeDriver) -> None:
    buffer = CudaBuffer(8 * PIECE, 0)
    fake.fails["cuMemCreate"] = 0
    buffer.commit(PIECE)
    assert buffer.committed == PIECE
    fake.memory = 4 * PIECE
    with pytest.raises(MemoryRefusedError, match="OUT_OF_MEMORY"):
        buffer.commit(8 * PIECE)
    assert buffer.committed == PIECE and len(fake.handles) == 1
