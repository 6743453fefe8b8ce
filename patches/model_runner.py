"""model_executor/model_runner.py, SGLang 0.5.17: the draft draws with the noise that its verification will use.

SGLang takes the argmax of the draft's logits; with noise added (cpu/chain_sampling.py) that is a draw from the draft's
distribution at the request's temperature, coupled to the target's own draw. Greedy requests see their logits unchanged.
"""

from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.cpu import chain_sampling, noise
from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_RUNNER = "sglang.srt.model_executor.model_runner:ModelRunner"
_BATCH = "sglang.srt.model_executor.forward_batch_info:ForwardBatch"

SEAMS = (
    Seam(
        f"{_RUNNER}.forward",
        ("forward_batch", "skip_attn_backend_init", "pp_proxy_tensors", "reinit_attn_backend", "split_forward_count"),
        "hook",
        "to draw drafts at a temperature",
    ),
    *(
        Seam(f"{_BATCH}.{field}", None, "field", "to know a row's request, position and temperature")
        for field in ("forward_mode", "req_pool_indices", "positions", "sampling_info", "extend_seq_lens", "spec_info")
    ),
)


def is_prompt(mode: Any) -> bool:
    """True for passes over prompts, as opposed to decoding, verification and the draft's own extends."""
    return mode.is_extend() and not mode.is_target_verify() and not mode.is_draft_extend_v2()


def drawing_positions(forward_batch: Any) -> torch.Tensor:
    """Positions of the rows that have logits: all of them, but a prompt's last only."""
    if is_prompt(forward_batch.forward_mode):
        return forward_batch.positions[torch.cumsum(forward_batch.extend_seq_lens, dim=0) - 1]
    selected = getattr(forward_batch.spec_info, "select_index", None)
    if forward_batch.forward_mode.is_draft_extend_v2() and selected is not None:
        return forward_batch.positions[selected]
    return forward_batch.positions


def share_noise(output: Any, runner: Any, forward_batch: Any, *arguments: Any, **named: Any) -> None:
    info = forward_batch.sampling_info
    if info is None or forward_batch.forward_mode.is_idle():
        return
    if not runner.is_draft_worker:
        if is_prompt(forward_batch.forward_mode):
            noise.dice.roll(forward_batch.req_pool_indices)
        return
    logits, requests = output.logits_output.next_token_logits, len(forward_batch.req_pool_indices)
    chain_sampling.draw_drafts_(
        logits,
        info,
        torch.arange(requests).repeat_interleave(len(logits) // requests),
        drawing_positions(forward_batch),
        forward_batch.req_pool_indices,
        getattr(runner.model, "hot_token_id", None),
    )


def apply() -> None:
    HookRegistry.register(f"{_RUNNER.replace(':', '.')}.forward", share_noise, HookType.AFTER)
