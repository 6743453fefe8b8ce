"""SGLang's EAGLE-3 ``LlamaModel`` in pieces: what its first layer reads, its layers, and keys and values alone."""

from typing import Any

import torch

from sglang_nightjar.cpu import llama_stack, packed_linear
from sglang_nightjar.cpu.attention_backend import AttentionBatch
from sglang_nightjar.cpu.llama_stack import LlamaStack


def stack_of(model: Any) -> LlamaStack | None:
    """The layers of an EAGLE-3 ``LlamaModel`` as one call, or None if they don't fit."""
    if model.is_mrope_enabled or not model.layers[0].is_input_layer:
        return None
    return llama_stack.stack_of(model, model.layers, [layer.hidden_norm for layer in model.layers])


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


def read_inputs(model: Any, input_ids: torch.Tensor, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the first layer adds to, ``[rows, hidden]``, and what its attention reads, ``[rows, 2 * hidden]``."""
    embeds = model.embed_tokens(input_ids)
    # The stack writes to its residual, and the hidden state may be the caller's.
    residual = project_hidden_states(model, hidden_states, embeds.shape[-1]).clone(
        memory_format=torch.contiguous_format
    )
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
    return residual, first_input


def run_layers(
    model: Any,
    stack: LlamaStack,
    residual: torch.Tensor,
    first_input: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    batch: AttentionBatch,
    pool: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The draft's layers over ``rows`` tokens.

    Args:
        model, stack: SGLang's EAGLE-3 ``LlamaModel``, and `stack_of` it.
        residual, first_input: as `read_inputs` has them; ``residual`` is written to.
        positions, slots: int64 ``[rows]``; ``slots`` are where keys and values go.
        batch, pool: which positions each request attends to, and the draft's KV pool.

    Returns:
        States for the head and states to carry on, both float32 ``[rows, hidden]``.
    """
    stack.forward(residual, positions, slots, batch, pool, first_input=first_input)
    hidden = torch.ops.nightjar.rms_norm(residual, model.norm.weight, model.norm.variance_epsilon)
    return hidden, hidden if model.norm_output else residual


def store_keys_and_values(
    layer: Any, first_input: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, pool: Any
) -> None:
    """What attention's later rows need of these: ``first_input`` ``[rows, 2 * hidden]`` to ``slots`` of ``pool``."""
    attention = layer.self_attn
    both = packed_linear.packed(attention.qkv_proj.weight).linear_from(first_input, attention.q_size)
    queries, keys, values = both.split([0, attention.kv_size, attention.kv_size], dim=-1)
    rotary = attention.rotary_emb
    torch.ops.nightjar.rotary_embedding_(
        positions, queries, keys, rotary.cos_sin_cache, attention.head_dim, rotary.is_neox_style
    )
    for buffer, new in ((pool.get_key_buffer, keys), (pool.get_value_buffer, values)):
        cache = buffer(attention.attn.layer_id)
        cache[slots] = new.reshape(-1, *cache.shape[1:]).to(cache.dtype)
