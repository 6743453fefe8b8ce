"""The bookkeeping of speculation against plain loops, on ragged, equal and empty batches."""

import pytest
import torch

from sglang_nightjar.cpu import spec_ops

POOL, CONTEXT = 9, 40
LENGTHS = {"ragged": [3, 0, 5, 1], "equal": [4, 4, 4], "one": [6], "nothing": [0, 0], "empty": []}


def batch(name: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(req_to_token, rows, start, end) of requests that sit in the pool in no order."""
    draw = torch.Generator().manual_seed(seed)
    table = torch.randint(1000, (POOL, CONTEXT), generator=draw, dtype=torch.int32)
    lengths = torch.tensor(LENGTHS[name], dtype=torch.int64)
    rows = torch.randperm(POOL, generator=draw)[: len(lengths)]
    start = torch.randint(0, CONTEXT - 8, (len(lengths),), generator=draw)
    return table, rows, start, start + lengths


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("name", LENGTHS)
def test_slots_are_written_to_the_requests_own_rows_and_read_back(name, dtype):
    table, rows, start, end = batch(name)
    expected = table.clone()
    slots = torch.arange(2000, 2000 + sum(LENGTHS[name]), dtype=torch.int64)
    at = 0
    for row, low, high in zip(rows.tolist(), start.tolist(), end.tolist(), strict=True):
        for position in range(low, high):
            expected[row, position] = slots[at]
            at += 1
    spec_ops.assign_req_to_token_pool_cpu(rows.to(dtype), table, start.to(dtype), end.to(dtype), slots, CONTEXT)
    assert torch.equal(table, expected)
    read = torch.full((at + 2,), -1, dtype=torch.int64)
    spec_ops.assign_extend_cache_locs_cpu(rows.to(dtype), table, start.to(dtype), end.to(dtype), read, CONTEXT)
    assert read.tolist() == [*slots.tolist(), -1, -1]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_drafts_slots_follow_the_request(steps):
    table, rows, start, _ = batch("ragged")
    out = torch.zeros(len(rows) * steps, dtype=torch.int64)
    spec_ops.assign_draft_cache_locs_contiguous_cpu(rows, table, start, out, CONTEXT, 1, steps)
    expected = [
        int(table[row, low + i]) for row, low in zip(rows.tolist(), start.tolist(), strict=True) for i in range(steps)
    ]
    assert out.tolist() == expected
    assert torch.equal(spec_ops.build_draft_decode_metadata_cpu(table, rows, start, 1, steps, CONTEXT), table[rows])


def test_a_chain_is_described_in_order():
    lengths = torch.tensor([7, 2])
    positions, index = torch.zeros(8, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)
    following, sibling = torch.zeros(2, 4, dtype=torch.int64), torch.full((2, 4), -1)
    spec_ops.build_tree_kernel_efficient_cpu(
        None, None, lengths, None, positions, index, following, sibling, 1, 3, 4, None
    )
    assert positions.tolist() == [7, 8, 9, 10, 2, 3, 4, 5]
    assert index.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert following.tolist() == [[1, 2, 3, -1]] * 2
    assert (sibling == -1).all()


def test_trees_are_refused():
    with pytest.raises(NotImplementedError, match="topk 1"):
        spec_ops.build_tree_kernel_efficient_cpu(*[None] * 8, 2, 3, 4, None)
    with pytest.raises(NotImplementedError, match="topk 1"):
        spec_ops.build_draft_decode_metadata_cpu(None, None, None, 2, 3, 4)


def test_the_longest_agreeing_prefix_is_accepted():
    draw = torch.Generator().manual_seed(1)
    size, width = 200, 5
    candidates = torch.randint(3, (size, width), generator=draw)
    target = torch.randint(3, (size, width), generator=draw)
    predicts = torch.full((size * width,), -7, dtype=torch.int32)
    index = torch.full((size, width), -7, dtype=torch.int32)
    accepted = torch.full((size,), -7, dtype=torch.int32)
    spec_ops.verify_tree_greedy_cpu(predicts, index, accepted, candidates, None, None, None, target)
    assert set(accepted.tolist()) == {0, 1, 2, 3, 4}
    for i in range(size):
        right = 0
        while right < width - 1 and candidates[i, right + 1] == target[i, right]:
            right += 1
        assert accepted[i] == right
        assert index[i].tolist() == [i * width + j if j <= right else -1 for j in range(width)]
        assert predicts.view(size, width)[i, : right + 1].tolist() == target[i, : right + 1].tolist()
    bonus = torch.zeros(size, dtype=torch.int32)
    spec_ops.fill_bonus_tokens_cpu(predicts, accepted + 1, bonus, width)
    assert bonus.tolist() == [int(target[i, accepted[i]]) for i in range(size)]


def test_cache_rows_move_even_where_source_and_target_overlap():
    buffers = [torch.arange(60.0).view(10, 6) + 100 * i for i in range(4)]
    before = [b.clone() for b in buffers]
    source, target = torch.tensor([3, 4, 5, 9]), torch.tensor([4, 5, 6, 0])
    pointers = torch.tensor([b.data_ptr() for b in buffers], dtype=torch.uint64)
    strides = torch.tensor([b.stride(0) * 4 for b in buffers])
    spec_ops.copy_all_layer_kv_cache_cpu(pointers, strides, target, source)
    for old, new in zip(before, buffers, strict=True):
        expected = old.clone()
        expected[target] = old[source]
        assert torch.equal(new, expected)
