"""speculative/eagle_utils.py, SGLang 0.5.17: verification on a CPU honours temperature, top-k, top-p and min-p.

SGLang verifies with the target's argmax whenever the device is a CPU, so a request with a temperature silently gets
greedy text from its second token on. Here the argmax is replaced by draws from the target's distribution
(cpu/chain_sampling.py says why that is exact). Batches of greedy requests only are left alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.cpu import chain_sampling
from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_MODULE = "sglang.srt.speculative.eagle_utils"

SEAMS = (
    Seam(
        f"{_MODULE}:eagle_sample",
        ("verify_input", "batch", "logits_output", "grammar_mask"),
        "hook",
        "to know what the verified requests asked for",
    ),
    Seam(
        f"{_MODULE}:verify_tree_greedy_func",
        (
            "predicts",
            "accept_index",
            "accept_token_num",
            "candidates",
            "retrieve_index",
            "retrieve_next_token",
            "retrieve_next_sibling",
            "target_predict",
            "topk",
        ),
        "hook",
        "to compare drafts with draws from the target instead of its argmax",
    ),
)

# eagle_sample applies penalties, bias and grammar to the logits in place and then verifies; it hands over the argmax
# only, so what it was called with is kept here for the time of the call. A scheduler has one thread for this.
_in_call: tuple[Any, Any, Any] | None = None


def eagle_sample(
    original: Callable[..., Any], verify_input: Any, batch: Any, logits_output: Any, grammar_mask: Any = None
) -> Any:
    global _in_call
    is_sampled = not batch.forward_mode.is_idle() and not batch.sampling_info.is_all_greedy
    _in_call = (verify_input, batch.sampling_info, logits_output) if is_sampled else None
    try:
        return original(verify_input, batch, logits_output, grammar_mask)
    finally:
        _in_call = None


def verify(original: Callable[..., Any], *args: Any, target_predict: torch.Tensor, **kwargs: Any) -> Any:
    if _in_call is not None:
        verify_input, sampling_info, logits_output = _in_call
        drawn = chain_sampling.draw_targets(
            logits_output.next_token_logits, sampling_info, verify_input.draft_token_num, verify_input.positions
        )
        target_predict = drawn.view_as(target_predict)
    return original(*args, target_predict=target_predict, **kwargs)


def apply() -> None:
    HookRegistry.register(f"{_MODULE}.eagle_sample", eagle_sample, HookType.AROUND)
    HookRegistry.register(f"{_MODULE}.verify_tree_greedy_func", verify, HookType.AROUND)
