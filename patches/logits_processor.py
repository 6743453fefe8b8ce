"""layers/logits_processor.py, SGLang 0.5.17: the vocabulary head, the target's and the draft's, on packed weights.

The head does not go through a linear method: SGLang multiplies with the transposed embedding. A tied embedding keeps
its plain weight for looking tokens up, so the packed head is a second copy of it.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.cpu import packed_linear
from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_TARGET = "sglang.srt.layers.logits_processor:LogitsProcessor._compute_lm_head"

SEAMS = (
    Seam(_TARGET, ("hidden_states", "lm_head", "embedding_bias"), "hook", "to compute logits on packed weights"),
    Seam(
        "sglang.srt.layers.logits_processor:should_apply_lm_head_quant_method",
        ("lm_head", "quant_method"),
        "call",
        "to leave quantised heads alone",
    ),
)


def compute_lm_head(
    original: Callable[..., torch.Tensor],
    processor: Any,
    hidden_states: torch.Tensor,
    lm_head: Any,
    embedding_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``hidden_states [rows, hidden]`` -> logits ``[rows, vocabulary]``."""
    from sglang.srt.layers.logits_processor import should_apply_lm_head_quant_method

    weight = getattr(lm_head, "weight", None)
    if (
        embedding_bias is not None
        or processor.use_fp32_lm_head
        or hasattr(lm_head, "set_lora")
        or should_apply_lm_head_quant_method(lm_head, getattr(lm_head, "quant_method", None))
        or not packed_linear.can_pack(weight)
    ):
        return original(processor, hidden_states, lm_head, embedding_bias)
    return packed_linear.packed(weight).linear(hidden_states.to(weight.dtype))


def apply() -> None:
    HookRegistry.register(_TARGET.replace(":", "."), compute_lm_head, HookType.AROUND)
