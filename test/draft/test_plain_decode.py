"""When γ=0 is a decode step, and what its forward pass is given."""

from types import SimpleNamespace as Fake
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode

from sglang_nightjar.draft import plain_decode


def worker(graphs: Any = None) -> Fake:
    algorithm = Fake(is_standalone=lambda: False)
    return Fake(model_runner=Fake(decode_cuda_graph_runner=graphs, spec_algorithm=algorithm))


def batch() -> Fake:
    return Fake(
        forward_mode=ForwardMode.DECODE,
        token_to_kv_pool_allocator=Fake(),
        req_pool_indices=torch.tensor([2, 1]),
        seq_lens=torch.tensor([3, 5]),
        seq_lens_cpu=torch.tensor([3, 5]),
        seq_lens_sum=8,
        device="cpu",
        spec_info="verify input",
    )


VERIFY = Fake(draft_token_num=1, draft_token=torch.tensor([7, 9], dtype=torch.int32))
POOL = Fake(req_to_token=torch.arange(40, dtype=torch.int32).view(4, 10))


@pytest.mark.parametrize(
    "changes, possible",
    [
        ({}, True),
        ({"verify": Fake(draft_token_num=4)}, False),
        ({"batch": {"forward_mode": ForwardMode.IDLE}}, False),
        ({"pool": Fake(mamba_allocator=None)}, False),
        ({"worker": worker(Fake(capture_forward_mode=ForwardMode.TARGET_VERIFY))}, False),
        ({"worker": worker(Fake(capture_forward_mode=ForwardMode.DECODE))}, True),
    ],
)
def test_where_it_is_possible(changes: dict[str, Any], possible: bool) -> None:
    made = batch()
    vars(made).update(changes.get("batch", {}))
    arguments = (changes.get("verify", VERIFY), changes.get("pool", POOL), made, changes.get("worker", worker()))
    assert plain_decode.is_possible(*arguments) is possible


def test_the_forward_pass_counts_the_new_token_and_the_batch_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def init_new(batch: Any, runner: Any, **named: Any) -> str:
        seen.update(vars(batch), **named)
        return "forward batch"

    monkeypatch.setattr(ForwardBatch, "init_new", init_new)
    made = batch()
    assert plain_decode.prepare(VERIFY, POOL, made, worker()) == ("forward batch", False)
    assert seen["seq_lens"].tolist() == seen["seq_lens_cpu"].tolist() == [4, 6]
    assert seen["spec_info"] is None and seen["forward_mode"].is_decode()
    assert seen["capture_hidden_mode"] == CaptureHiddenMode.FULL
    assert made.out_cache_loc.tolist() == [23, 15]
    assert made.input_ids.tolist() == [7, 9] and made.input_ids.dtype == torch.int64
    assert made.seq_lens.tolist() == made.seq_lens_cpu.tolist() == [3, 5]
    assert made.spec_info is VERIFY and made.seq_lens_sum == 8
