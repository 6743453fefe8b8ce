"""Positions of a batch: as SGLang's own function has them."""

import pytest
import torch
from sglang.srt.model_executor import forward_batch_info

from sglang_nightjar.patches.forward_batch_info import compute_position

_THEIRS = getattr(forward_batch_info.compute_position_torch, "__wrapped__", forward_batch_info.compute_position_torch)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("size", [1, 2, 33])
def test_positions_are_those_of_sglang(size: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(size)
    prefix = torch.randint(0, 50, (size,), generator=draw).to(dtype)
    lens = torch.randint(1, 9, (size,), generator=draw).to(dtype)
    for mine, theirs in zip(compute_position(prefix, lens), _THEIRS(prefix, lens), strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.tolist() == theirs.tolist()
