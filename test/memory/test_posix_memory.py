"""Elastic buffers on a CPU: memory that really comes and goes while the addresses stay."""

import subprocess
import sys

import pytest
import torch

from sglang_nightjar.memory import elastic
from sglang_nightjar.memory.elastic import MemoryRefusedError
from sglang_nightjar.memory.posix import PAGE, PosixBuffer, resident_bytes

CPU = torch.device("cpu")


@pytest.fixture
def buffer():
    made = elastic.reserve(64 * PAGE, CPU)
    yield made
    made.close()


def test_memory_comes_when_touched_and_leaves_when_released(buffer: PosixBuffer) -> None:
    assert (buffer.reserved, buffer.committed, buffer.granularity) == (64 * PAGE, 0, PAGE)
    assert resident_bytes(buffer.address, buffer.reserved) == 0
    buffer.commit(32 * PAGE)
    seen = buffer.tensor(torch.uint8, (32 * PAGE,))
    seen.fill_(7)
    assert resident_bytes(buffer.address, buffer.reserved) == 32 * PAGE
    buffer.release(8 * PAGE)
    assert buffer.committed == 8 * PAGE
    assert resident_bytes(buffer.address, buffer.reserved) == 8 * PAGE
    assert seen[: 8 * PAGE].eq(7).all()
    buffer.commit(32 * PAGE)
    assert seen[: 8 * PAGE].eq(7).all() and seen[8 * PAGE :].eq(0).all()
    assert seen.data_ptr() == buffer.address


def test_resident_set_of_the_process_falls() -> None:
    import psutil

    process, size = psutil.Process(), 64 << 20
    buffer = elastic.reserve(size, CPU)
    before = process.memory_info().rss
    buffer.commit(size)
    buffer.tensor(torch.uint8, (size,)).fill_(1)
    held = process.memory_info().rss
    buffer.release(0)
    after = process.memory_info().rss
    buffer.close()
    assert held - before > 0.95 * size
    assert held - after > 0.95 * size


def test_half_pages_stay(buffer: PosixBuffer) -> None:
    buffer.commit(1)
    assert buffer.committed == PAGE
    buffer.commit(3 * PAGE + 1)
    assert buffer.committed == 4 * PAGE
    buffer.release(PAGE + 1)
    assert buffer.committed == 2 * PAGE
    buffer.release(3 * PAGE)
    assert buffer.committed == 2 * PAGE


def test_tensors_have_their_place(buffer: PosixBuffer) -> None:
    buffer.commit(buffer.reserved)
    first = buffer.tensor(torch.float32, (4, 8), offset=256)
    first.copy_(torch.arange(32.0).view(4, 8))
    assert first.data_ptr() == buffer.address + 256
    assert first.is_contiguous() and not first.requires_grad
    again = buffer.tensor(torch.float32, (32,), offset=256)
    assert again.tolist() == list(range(32))
    assert torch.nn.functional.linear(first, first).shape == (4, 4)


def test_what_is_out_of_range_is_refused(buffer: PosixBuffer) -> None:
    with pytest.raises(ValueError, match="reserved"):
        buffer.commit(65 * PAGE)
    with pytest.raises(ValueError, match="outside"):
        buffer.tensor(torch.float32, (64 * PAGE,))
    with pytest.raises(MemoryRefusedError, match="addresses"):
        PosixBuffer(1 << 62)
    with pytest.raises(ValueError, match="meta"):
        elastic.reserve(1, torch.device("meta"))


def test_released_memory_faults() -> None:
    """A stray index must not be served quietly."""
    program = """
import torch
from sglang_nightjar.memory import elastic
buffer = elastic.reserve(1 << 20, torch.device("cpu"))
buffer.commit(1 << 20)
seen = buffer.tensor(torch.uint8, (1 << 20,))
seen[-1] = 1
buffer.release(0)
print("released", flush=True)
print(int(seen[-1]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "released\n"
    assert done.returncode == -11
