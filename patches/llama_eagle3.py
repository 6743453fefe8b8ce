"""models/llama_eagle3.py, SGLang 0.5.17: the EAGLE-3 draft's layers in one call of the CPU kernels.

The first layer reads the normed token embedding and the normed hidden state side by side; further layers norm the
residual with their ``hidden_norm``.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_MODEL = "sglang.srt.models.llama_eagle3:LlamaModel"

SEAMS = (
    Seam(
        f"{_MODEL}.forward",
        ("input_ids", "positions", "forward_batch", "input_embeds", "pp_proxy_tensors"),
        "hook",
        "to run the draft's layers in one call",
    ),
)


def forward(
    original: Callable[..., Any],
    model: Any,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    forward_batch: Any,
    input_embeds: torch.Tensor | None = None,
    pp_proxy_tensors: Any = None,
) -> Any:
    """As llama_eagle3.LlamaModel.forward: states for the head ``[rows, hidden]`` and a list of those to carry on."""
    from sglang.srt.model_executor.forward_context import get_attn_backend

    from sglang_nightjar.cpu import eagle3_layers, llama_stack

    backend = get_attn_backend()
    stack = eagle3_layers.stack_of(model) if input_embeds is None and forward_batch.mm_input_embeds is None else None
    if stack is None or not llama_stack.usable_backend(backend, forward_batch):
        return original(model, input_ids, positions, forward_batch, input_embeds, pp_proxy_tensors)
    residual, first_input = eagle3_layers.read_inputs(model, input_ids, forward_batch.spec_info.hidden_states)
    hidden, carried = eagle3_layers.run_layers(
        model,
        stack,
        residual,
        first_input,
        positions,
        forward_batch.out_cache_loc,
        backend.batch,
        backend.token_to_kv_pool,
    )
    return hidden, [carried]


def apply() -> None:
    HookRegistry.register(f"{_MODEL.replace(':', '.')}.forward", forward, HookType.AROUND)
