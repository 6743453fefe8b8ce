"""layers/attention/intel_amx_backend.py, SGLang 0.5.17.

Without AMX: its two classes are replaced by ours (cpu/attention_backend.py), on portable kernels.

With AMX and SGLang's own kernels: both forward methods unpack ``seq_lens`` from the prepared metadata and then
overwrite it with ``forward_batch.seq_lens``, so a verification misses its own draft tokens and draft step i misses the
tokens of the steps before it. The methods here are the same calls without the overwrite. Fixed upstream in 0.5.23.
"""

from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.cpu.detect import choose_engine
from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_MODULE = "sglang.srt.layers.attention.intel_amx_backend"
_FORWARD = ("q", "k", "v", "layer", "forward_batch", "save_kv_cache", "sinks")

_REPLACED_CLASSES = (
    Seam(f"{_MODULE}:IntelAMXAttnBackend", ("model_runner",), "hook", "to attend without AMX"),
    Seam(
        f"{_MODULE}:IntelAMXMultiStepDraftBackend",
        ("model_runner", "topk", "speculative_num_steps"),
        "hook",
        "to draft several steps without AMX",
    ),
)
_MENDED_METHODS = (
    Seam(f"{_MODULE}:IntelAMXAttnBackend.forward_extend", _FORWARD, "hook", "or verification attends too short"),
    Seam(f"{_MODULE}:IntelAMXAttnBackend.forward_decode", _FORWARD, "hook", "or draft steps attend too short"),
)

SEAMS = _MENDED_METHODS if choose_engine().engine == "sgl_kernel" else _REPLACED_CLASSES


def _new_output(q: torch.Tensor, layer: Any) -> torch.Tensor:
    if layer.qk_head_dim == layer.v_head_dim:
        return torch.empty_like(q)
    return q.new_empty((q.shape[0], layer.tp_q_head_num * layer.v_head_dim))


def _cache_locations(layer: Any, forward_batch: Any) -> torch.Tensor:
    return forward_batch.encoder_out_cache_loc if layer.is_cross_attention else forward_batch.out_cache_loc


def forward_extend(
    self: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Any,
    forward_batch: Any,
    save_kv_cache: bool = True,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """As IntelAMXAttnBackend.forward_extend, with the metadata's lengths. Returns ``[rows, heads * head_dim]``."""
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    output = _new_output(q, layer)
    if save_kv_cache and k is not None and v is not None:
        swa_locations = None if layer.is_cross_attention else self.swa_out_cache_loc
        location = KVWriteLoc(_cache_locations(layer, forward_batch), swa_locations)
        self.token_to_kv_pool.set_kv_buffer(layer, location, k, v)
    seq_lens, extend_seq_lens, extend_start_loc, tree_mask = self.extend_metadata
    _, max_extend_len = self.forward_metadata
    self.extend_attention_fwd(
        q.view(-1, layer.tp_q_head_num, layer.qk_head_dim),
        k,
        v,
        output.view(-1, layer.tp_q_head_num, layer.v_head_dim),
        self.token_to_kv_pool.get_key_buffer(layer.layer_id),
        self.token_to_kv_pool.get_value_buffer(layer.layer_id),
        self.req_to_token_pool.req_to_token,
        forward_batch.req_pool_indices,
        seq_lens.to(torch.int64),
        extend_seq_lens,
        extend_start_loc,
        max_extend_len,
        layer.scaling,
        layer.logit_cap,
        layer.is_cross_attention,
        layer.sliding_window_size + 1,
        forward_batch.encoder_lens,
        sinks,
        tree_mask,
    )
    return output


def forward_decode(
    self: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Any,
    forward_batch: Any,
    save_kv_cache: bool = True,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """As IntelAMXAttnBackend.forward_decode, with the metadata's lengths. Returns ``[rows, heads * head_dim]``."""
    attn_logits, _ = self.forward_metadata
    if self.draft_decode_metadata is not None:
        req_to_token, seq_lens, req_pool_indices = self.draft_decode_metadata
    else:
        req_to_token = self.req_to_token_pool.req_to_token
        seq_lens, req_pool_indices = forward_batch.seq_lens, forward_batch.req_pool_indices
    q = q.reshape(-1, layer.tp_q_head_num * layer.qk_head_dim)
    output = _new_output(q, layer)
    self.decode_attention_fwd(
        q.view(-1, layer.tp_q_head_num, layer.qk_head_dim),
        self.token_to_kv_pool.get_key_buffer(layer.layer_id),
        self.token_to_kv_pool.get_value_buffer(layer.layer_id),
        output.view(-1, layer.tp_q_head_num, layer.v_head_dim),
        k,
        v,
        _cache_locations(layer, forward_batch),
        attn_logits,
        req_to_token,
        req_pool_indices,
        seq_lens.to(torch.int64),
        layer.scaling,
        layer.logit_cap,
        layer.is_cross_attention,
        layer.sliding_window_size + 1,
        forward_batch.encoder_lens,
        sinks,
    )
    return output


def apply() -> None:
    if SEAMS is _MENDED_METHODS:
        for method in (forward_extend, forward_decode):
            HookRegistry.register(f"{_MODULE}.IntelAMXAttnBackend.{method.__name__}", method, HookType.REPLACE)
        return
    from sglang_nightjar.cpu.attention_backend import CpuAttentionBackend, CpuMultiStepDraftBackend

    HookRegistry.register(f"{_MODULE}.IntelAMXAttnBackend", CpuAttentionBackend, HookType.REPLACE)
    HookRegistry.register(f"{_MODULE}.IntelAMXMultiStepDraftBackend", CpuMultiStepDraftBackend, HookType.REPLACE)
