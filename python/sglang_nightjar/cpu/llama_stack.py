"""The decoder layers of a Llama model as one call of the C++ kernels, where the model's shapes allow it.

At batch 1 SGLang's Python needs about as long for 30 layers as the matrix products themselves. ``stack_of`` looks at a
list of SGLang's ``LlamaDecoderLayer`` and builds a ``LlamaStack`` from it, or says why not; then SGLang's own path
runs, layer by layer, on the same kernels.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

from sglang_nightjar.cpu import kernels, packed_linear
from sglang_nightjar.cpu.attention_backend import AttentionBatch, CpuAttentionBackend

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Built:
    """What a stack's pointers depend on; a stack is rebuilt when any of it changes."""

    epoch: int
    key_cache: int
    cos_sin: int


class LlamaStack:
    """Layers ``[0, n)`` of one model; ``first_norm_of`` names each layer's norm in front of its attention."""

    def __init__(self, layers: list[Any], first_norms: list[Any]):
        self._layers = layers
        self._first_norms = first_norms
        self._rotary = layers[0].self_attn.rotary_emb
        self._handle: int | None = None
        self._built: _Built | None = None

    def forward(
        self,
        residual: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        batch: AttentionBatch,
        pool: Any,
        first_input: torch.Tensor | None = None,
        capture: list[int] | None = None,
    ) -> torch.Tensor | None:
        """Run all layers; ``residual`` ``[rows, hidden]`` float32 is updated in place.

        ``positions`` and ``slots`` are int64 ``[rows]``, the latter where in ``pool`` keys and values go; ``batch``
        says what each request attends to. ``first_input`` replaces the first layer's normed input (EAGLE-3). Returns
        the residual in front of each layer in ``capture`` (ascending), side by side: ``[rows, len(capture) * hidden]``,
        or None without ``capture``.
        """
        handle = self.handle(pool)
        captured = residual.new_empty(residual.shape[0], len(capture) * residual.shape[1]) if capture else None
        torch.ops.nightjar.llama_forward(
            handle,
            residual,
            first_input,
            positions,
            slots,
            batch.req_to_token,
            batch.rows,
            batch.seq_lens,
            batch.extend_lens,
            capture or [],
            captured,
        )
        return captured

    def handle(self, pool: Any) -> int:
        """Of the C++ stack, built anew where weights, ``pool`` or angles have moved."""
        now = _Built(packed_linear.epoch, pool.k_buffer[0].data_ptr(), self._rotary.cos_sin_cache.data_ptr())
        if now == self._built and self._handle is not None:
            return self._handle
        if self._handle is not None:
            torch.ops.nightjar.llama_destroy(self._handle)
        tensors = []
        for layer, norm in zip(self._layers, self._first_norms, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            tensors += [
                norm.weight.data,
                packed_linear.packed(attention.qkv_proj.weight).weight,
                packed_linear.packed(attention.o_proj.weight).weight,
                layer.post_attention_layernorm.weight.data,
                packed_linear.packed(mlp.gate_up_proj.weight).weight,
                packed_linear.packed(mlp.down_proj.weight).weight,
                pool.get_key_buffer(attention.attn.layer_id),
                pool.get_value_buffer(attention.attn.layer_id),
            ]
        attention = self._layers[0].self_attn
        self._handle = torch.ops.nightjar.llama_create(
            tensors,
            self._rotary.cos_sin_cache,
            attention.num_heads,
            attention.num_kv_heads,
            attention.head_dim,
            attention.scaling,
            self._first_norms[0].variance_epsilon,
            self._rotary.is_neox_style,
        )
        self._built = now
        return self._handle


def stack_of(model: Any, layers: list[Any], first_norms: list[Any]) -> LlamaStack | None:
    """The stack of ``layers``, kept on ``model``; None where the layers do not fit (the reason is logged once)."""
    found = getattr(model, "nightjar_stack", False)
    if found is False:
        reason = why_not(layers, first_norms)
        if reason:
            logger.info("layers of %s run one by one on the CPU: %s", type(model).__name__, reason)
        found = None if reason else LlamaStack(list(layers), list(first_norms))
        model.nightjar_stack = found
    return found


def why_not(layers: list[Any], first_norms: list[Any]) -> str | None:
    """Why these layers can't run as one stack, as a clause; None if they can."""
    if not kernels.use_native():
        return "the C++ kernels are switched off"
    for layer, first_norm in zip(layers, first_norms, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj):
            if type(linear.quant_method) is not UnquantizedLinearMethod or linear.weight.dtype != torch.float32:
                return "weights are not plain float32"
            if linear.bias is not None or linear.tp_size != 1:
                return "linear layers have a bias or are split over processes"
        for norm in (first_norm, layer.post_attention_layernorm):
            if not plain_norm(norm) or norm.variance_epsilon != first_norms[0].variance_epsilon:
                return "a norm is not a plain RMSNorm"
        if type(mlp.act_fn) is not SiluAndMul:
            return "the activation is not SiLU"
        rotary = attention.rotary_emb
        # Scaled variants (Llama 3, linear, dynamic) differ from the base class in the table of angles only.
        if type(rotary).forward_native is not RotaryEmbedding.forward_native or rotary.cos_sin_cache.dim() != 2:
            return "rotary embeddings are of a special kind"
        if attention.head_dim % 8 or attention.attn.sliding_window_size >= 0 or attention.attn.logit_cap > 0:
            return "attention has a window, a cap or an odd head size"
    return None


def plain_norm(norm: Any) -> bool:
    """True for an RMSNorm that normalises whole float32 rows and nothing else."""
    return (
        type(norm) is RMSNorm
        and norm.variance_size_override is None
        and not norm.cast_x_before_out_mul
        and norm.weight.dtype == torch.float32
    )


def usable_pool(pool: Any) -> bool:
    """True if a stack can write to this KV pool."""
    return getattr(pool, "k_buffer", None) is not None and pool.k_buffer[0].dtype in (torch.float32, torch.bfloat16)


def usable_backend(backend: Any, forward_batch: Any) -> bool:
    """True if this forward pass can use a stack: our attention, a cache it can write to, a batch that is not empty."""
    return (
        isinstance(backend, CpuAttentionBackend)
        and usable_pool(backend.token_to_kv_pool)
        and not forward_batch.forward_mode.is_idle()
    )
