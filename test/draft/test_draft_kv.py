"""The draft's own KV cache: it goes whole, comes back at the same addresses, or not at all."""

import pytest
import torch
from helpers.kv_world import make_pool

from sglang_nightjar.draft import elastic_pool
from sglang_nightjar.draft.draft_kv import DraftKv
from sglang_nightjar.memory.elastic import MemoryRefusedError
from sglang_nightjar.memory.posix import PAGE, PosixBuffer, resident_bytes

TOKENS = 4000
#: Of a token in each of four buffers: two heads of eight float32.
ROW = 2 * 8 * 4


class Refusing(PosixBuffer):
    """Refuses the commit after so many more."""

    left: int | None = None

    def _back(self, start: int, end: int) -> None:
        if Refusing.left is not None:
            if Refusing.left == 0:
                raise MemoryRefusedError("injected")
            Refusing.left -= 1
        super()._back(start, end)


@pytest.fixture
def kv(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(elastic_pool, "PIECE_BYTES", 8 * PAGE)
    monkeypatch.setattr(Refusing, "left", None)
    made = DraftKv(make_pool(TOKENS), lambda nbytes, device, huge_bytes=0: Refusing(nbytes))
    yield made
    made.close()


def buffers(kv: DraftKv) -> list[torch.Tensor]:
    return [*kv.pool.k_buffer, *kv.pool.v_buffer]


def test_it_has_the_slots_of_the_target_and_all_of_them_at_once(kv: DraftKv) -> None:
    assert kv.pool.size == TOKENS
    assert kv.nbytes == kv.device_bytes == 4 * (-(-(TOKENS + 1) * ROW // PAGE) * PAGE)
    assert all(not tensor.any() for tensor in buffers(kv))


def test_all_of_it_goes_in_pieces_and_comes_back_where_it_was(kv: DraftKv) -> None:
    addresses = [tensor.data_ptr() for tensor in buffers(kv)]
    for tensor in buffers(kv):
        tensor.fill_(1.0)
    seen = [kv.device_bytes]
    for _ in kv.release():
        seen.append(kv.device_bytes)
    assert not kv.on_device and kv.device_bytes == 0
    assert max(a - b for a, b in zip(seen, seen[1:], strict=False)) <= 8 * PAGE
    assert sum(resident_bytes(address, TOKENS * ROW) for address in addresses) == 0
    for _ in kv.load():
        pass
    assert kv.on_device and kv.device_bytes == kv.nbytes
    assert [tensor.data_ptr() for tensor in buffers(kv)] == addresses
    assert all(not tensor.any() for tensor in buffers(kv)), "what was in it is lost, and nothing else is there"


@pytest.mark.parametrize("when", range(4))
def test_refused_memory_leaves_none_behind_and_can_be_had_later(kv: DraftKv, when: int) -> None:
    list(kv.release())
    Refusing.left = when
    with pytest.raises(MemoryRefusedError):
        list(kv.load())
    assert not kv.on_device and kv.device_bytes == 0
    Refusing.left = None
    list(kv.load())
    assert kv.on_device and kv.device_bytes == kv.nbytes


def test_released_in_the_middle_of_a_return(kv: DraftKv) -> None:
    list(kv.release())
    work = kv.load()
    next(work)
    assert 0 < kv.device_bytes < kv.nbytes
    work.close()
    list(kv.release())
    assert kv.device_bytes == 0
