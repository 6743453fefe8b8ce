"""models/llama.py, SGLang 0.5.17: all decoder layers in one call of the CPU kernels (cpu/llama_stack.py).

Used by every model whose layers are Llama's (Llama, SmolLM, Mistral and others that subclass it). Where a model, a
batch or a cache does not fit, SGLang's own loop over the layers runs, on the same kernels.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_MODEL = "sglang.srt.models.llama:LlamaModel"

SEAMS = (
    Seam(
        f"{_MODEL}.forward",
        ("input_ids", "positions", "forward_batch", "input_embeds", "pp_proxy_tensors"),
        "hook",
        "to run all layers in one call",
    ),
    Seam(
        "sglang.srt.model_executor.forward_context:get_attn_backend",
        (),
        "call",
        "to find the attention backend of this forward pass",
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
    """As LlamaModel.forward: hidden states ``[rows, hidden]``, and the captured ones if layers are to be captured."""
    from sglang.srt.model_executor.forward_context import get_attn_backend

    from sglang_nightjar.cpu import llama_stack

    backend = get_attn_backend()
    stack = None
    if pp_proxy_tensors is None and model.start_layer == 0 and model.end_layer == len(model.layers):
        norms = [layer.input_layernorm for layer in model.layers]
        stack = llama_stack.stack_of(model, model.layers, norms)
    if stack is None or not llama_stack.usable_backend(backend, forward_batch):
        return original(model, input_ids, positions, forward_batch, input_embeds, pp_proxy_tensors)
    residual = model.embed_tokens(input_ids) if input_embeds is None else input_embeds.clone()
    capture = [layer for layer in model.layers_to_capture if layer < len(model.layers)]
    captured = stack.forward(
        residual, positions, forward_batch.out_cache_loc, backend.batch, backend.token_to_kv_pool, capture=capture
    )
    norm = model.norm
    hidden = torch.ops.nightjar.rms_norm(residual, norm.weight, norm.variance_epsilon)
    return hidden if captured is None else (hidden, captured)


def apply() -> None:
    HookRegistry.register(f"{_MODEL.replace(':', '.')}.forward", forward, HookType.AROUND)
