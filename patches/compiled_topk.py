"""speculative/spec_utils.py, SGLang 0.5.17: run the draft's top-k selection eagerly.

``_select_top_k_tokens_later`` is decorated with ``torch.compile(dynamic=True)``; on a CPU that starts a C++ compilation
of many seconds inside the first request, for a handful of tiny operations. 0.5.23 dropped the decorator.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_TARGET = "sglang.srt.speculative.spec_utils:_select_top_k_tokens_later"
_PARAMS = ("i", "topk_p", "topk_index", "hidden_states", "scores", "topk")

SEAMS = (Seam(_TARGET, _PARAMS, "hook", "or the first draft waits for a compiler"),)


def select_chain_token(
    i: int, topk_p: torch.Tensor, topk_index: torch.Tensor, hidden_states: torch.Tensor, scores: torch.Tensor
) -> tuple[Any, ...]:
    """The one candidate per request of a chain (topk = 1): nothing to rank, nothing to gather.

    Shapes: ``topk_p``, ``topk_index``, ``scores`` ``[batch, 1]``, ``hidden_states`` ``[batch, hidden]``. Returns what
    SGLang's function returns: input ids ``[batch]``, hidden states, scores, and (scores, tokens, parents) of the step.
    """
    scores = scores * topk_p
    parents = topk_index.new_full((topk_index.shape[0], 1), i)
    return topk_index.flatten(), hidden_states, scores, (scores.unsqueeze(2), topk_index, parents)


def select_eagerly(
    original: Callable[..., tuple[Any, ...]],
    i: int,
    topk_p: torch.Tensor,
    topk_index: torch.Tensor,
    hidden_states: torch.Tensor,
    scores: torch.Tensor,
    topk: int,
) -> tuple[Any, ...]:
    if topk == 1:
        return select_chain_token(i, topk_p, topk_index, hidden_states, scores)
    return original(i, topk_p, topk_index, hidden_states, scores, topk)


def apply() -> None:
    HookRegistry.register(_TARGET.replace(":", "."), select_eagerly, HookType.AROUND)
