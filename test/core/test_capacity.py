"""Tokens gained: by hand where that can be done by hand, and by trying one more page everywhere else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_nightjar.core.capacity import KvLayout, aligned_offsets, human_bytes, tokens_gained

#: The demo pair's target: 30 layers, 3 heads of 64 in float32.
DEMO = KvLayout((3 * 64 * 4,) * 60, granularity=4096)
#: Llama-3-8B in bfloat16 on a GPU.
LLAMA = KvLayout((8 * 128 * 2,) * 64, granularity=2 << 20)


def test_by_hand() -> None:
    assert DEMO.bytes_per_token == 46_080
    assert tokens_gained(0, 1000, DEMO) == 0
    # 2 MiB in each of 64 buffers hold 1024 tokens; a base that fills its pieces has nothing to spare.
    step = 64 * (2 << 20)
    assert tokens_gained(step, 1023, LLAMA) == 1024
    assert tokens_gained(step - 1, 1023, LLAMA) == 0
    assert tokens_gained(4 * step, 1023, LLAMA) == 4096
    # One that does not has: 1024 - 512 more than the step.
    assert tokens_gained(step, 511, LLAMA) == 1536


@given(
    freed=st.integers(1, 10**8),
    base=st.integers(0, 20_000),
    rows=st.lists(st.integers(16, 4096), min_size=1, max_size=8),
    granularity=st.sampled_from([1, 4096, 1 << 16]),
    page_size=st.sampled_from([1, 16, 64]),
)
def test_it_fits_and_one_more_page_does_not(freed, base, rows, granularity, page_size) -> None:
    layout = KvLayout(tuple(rows), granularity, page_size)

    def growth(tokens: int) -> int:
        return sum(layout.committed_bytes(base + tokens)) - sum(layout.committed_bytes(base))

    gained = tokens_gained(freed, base, layout)
    assert gained % page_size == 0
    assert growth(gained) <= freed < growth(gained + page_size)


def test_offsets() -> None:
    assert aligned_offsets([1, 256, 257], 256) == ([0, 256, 512], 1024)
    assert aligned_offsets([], 256) == ([], 0)


@pytest.mark.parametrize("count, text", [(12, "12 B"), (4096, "4.1 kB"), (80_300_000, "80.3 MB"), (5e9, "5.0 GB")])
def test_bytes_for_people(count: int, text: str) -> None:
    assert human_bytes(count) == text
