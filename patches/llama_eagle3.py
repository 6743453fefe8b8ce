"""models/llama_eagle3.py, SGLang 0.5.17: the EAGLE-3 draft's layers in one call of the CPU kernels.

The first layer reads the normed token embedding and the normed hidden state side by side; further layers norm the
residual with their ``hidden_norm``.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.cpu import packed_linear
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


def project_hidden_states(model: Any, hidden_states: torch.Tensor, width: int) -> torch.Tensor:
    """The target's captured states ``[rows, aux * hidden]`` through ``fc``; the draft's own ``[rows, width]`` as is."""
    if hidden_states.shape[-1] == width:
        return hidden_states
    if model.input_norm is not None:
        hidden_states = model.input_norm(hidden_states)
    if model.fc_norm is not None:
        chunks = hidden_states.chunk(model.num_aux_hidden_states, dim=-1)
        hidden_states = torch.cat([norm(chunk) for norm, chunk in zip(model.fc_norm, chunks, strict=True)], dim=-1)
    return packed_linear.packed(model.fc.weight).linear(hidden_states, model.fc.bias)


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

    from sglang_nightjar.cpu import llama_stack

    backend = get_attn_backend()
    stack = None
    if input_embeds is None and forward_batch.mm_input_embeds is None and not model.is_mrope_enabled:
        stack = llama_stack.stack_of(model, model.layers, [layer.hidden_norm for layer in model.layers])
    if stack is None or not llama_stack.usable_backend(backend, forward_batch) or not model.layers[0].is_input_layer:
        return original(model, input_ids, positions, forward_batch, input_embeds, pp_proxy_tensors)
    embeds = model.embed_tokens(input_ids)
    hidden_states = project_hidden_states(model, forward_batch.spec_info.hidden_states, embeds.shape[-1])
    # The stack writes to its residual, and the hidden state may be the caller's.
    residual = hidden_states.clone(memory_format=torch.contiguous_format)
    rms_norm = torch.ops.nightjar.rms_norm
    first = model.layers[0]
    epsilon = first.input_layernorm.variance_epsilon
    first_input = torch.cat(
        [
            rms_norm(embeds, first.input_layernorm.weight, epsilon),
            rms_norm(residual, first.hidden_norm.weight, epsilon),
        ],
        dim=-1,
    )
    stack.forward(residual, positions, forward_batch, backend, first_input=first_input)
    hidden = rms_norm(residual, model.norm.weight, model.norm.variance_epsilon)
    return hidden, [hidden if model.norm_output else residual]


def apply() -> None:
    HookRegistry.register(f"{_MODEL.replace(':', '.')}.forward", forward, HookType.AROUND)
