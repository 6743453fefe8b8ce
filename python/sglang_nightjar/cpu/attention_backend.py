"""SGLang's attention backend on the C++ kernels; patches/intel_amx_backend.py puts it in the place of ``intel_amx``.

One description of the batch serves every forward mode and every layer of a forward pass (``AttentionBatch``); the fused
layer stack (llama_stack.py) reads it too.
"""

from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.runtime_context import get_spec

from sglang_nightjar.cpu import kernels, reference_attention, trim


@dataclass(frozen=True)
class AttentionBatch:
    """Which positions each request attends to.

    Attributes:
        req_to_token: int32 ``[requests, max_context]``, the cache slot of each position.
        rows: int64 ``[batch]``, each request's row of ``req_to_token``.
        seq_lens: int64 ``[batch]``, positions with the new ones counted.
        extend_lens: int64 ``[batch]``, new positions, the last of ``seq_lens``; None if each request has one.
    """

    req_to_token: torch.Tensor
    rows: torch.Tensor
    seq_lens: torch.Tensor
    extend_lens: torch.Tensor | None


def describe_batch(forward_batch: Any, req_to_token: torch.Tensor) -> AttentionBatch:
    """The batch of a prefill, decode, verification or draft-extend pass.

    In a verification ``forward_batch.seq_lens`` still counts without the draft tokens; in the other modes with the new
    ones (SGLang 0.5.17).
    """
    seq_lens = forward_batch.seq_lens.to(torch.int64)
    extend_lens = None
    if forward_batch.forward_mode.is_target_verify():
        spec_info = forward_batch.spec_info
        if spec_info.tree_topk != 1:
            raise NotImplementedError("the CPU engine verifies chains only: start with --speculative-eagle-topk 1")
        kept = trim.kept_of(spec_info)
        extend_lens = torch.full_like(seq_lens, spec_info.draft_token_num) if kept is None else kept.lengths
        seq_lens = seq_lens + extend_lens
    elif not forward_batch.forward_mode.is_decode_or_idle():
        extend_lens = forward_batch.extend_seq_lens.to(torch.int64)
    return AttentionBatch(req_to_token, forward_batch.req_pool_indices.to(torch.int64), seq_lens, extend_lens)


class CpuAttentionBackend(AttentionBackend):
    """Attention over a paged cache of page size 1, float32 or bfloat16."""

    def __init__(self, model_runner: Any):
        super().__init__()
        # Under these names SGLang's forward context looks for the pools.
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        # Read by the adaptive worker when it builds its states.
        self.num_draft_tokens = get_spec().speculative_num_draft_tokens
        self.max_context_len = model_runner.model_config.context_len
        if isinstance(self.token_to_kv_pool, SWAKVPool):
            raise NotImplementedError(
                "the CPU engine has no split pool for sliding windows: --disable-hybrid-swa-memory"
            )
        self.batch: AttentionBatch | None = None

    def init_forward_metadata(self, forward_batch: Any) -> None:
        self.batch = describe_batch(forward_batch, self.req_to_token_pool.req_to_token)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``q`` ``[rows, heads * head_dim]`` -> ``[rows, heads * head_dim]``; stores ``k`` and ``v`` first."""
        reference_attention.refuse_unsupported(layer.is_cross_attention, forward_batch.encoder_lens, sinks)
        if save_kv_cache and k is not None:
            location = KVWriteLoc(forward_batch.out_cache_loc, None)
            self.token_to_kv_pool.set_kv_buffer(layer, location, k, v)
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        output = query.new_empty(query.shape[0], layer.tp_q_head_num, layer.v_head_dim)
        batch = self.batch
        attend = torch.ops.nightjar.paged_attention if kernels.use_native() else reference_attention.paged_attention
        attend(
            query,
            self.token_to_kv_pool.get_key_buffer(layer.layer_id),
            self.token_to_kv_pool.get_value_buffer(layer.layer_id),
            output,
            batch.req_to_token,
            batch.rows,
            batch.seq_lens,
            batch.extend_lens,
            layer.scaling,
            layer.logit_cap,
            layer.sliding_window_size + 1,
        )
        return output.view(-1, layer.tp_q_head_num * layer.v_head_dim)

    # Decoding differs in its batch description only.
    forward_decode = forward_extend

    def support_triton(self) -> bool:
        return False


class CpuMultiStepDraftBackend:
    """The draft's decode steps: step i attends to the request and the i + 1 draft tokens before it."""

    def __init__(self, model_runner: Any, topk: int, speculative_num_steps: int):
        if topk != 1:
            raise NotImplementedError("the CPU engine drafts chains only: start with --speculative-eagle-topk 1")
        self.attn_backends = [CpuAttentionBackend(model_runner) for _ in range(speculative_num_steps - 1)]

    def init_forward_metadata(self, forward_batch: Any) -> None:
        # A chain's tokens lie in the request's own row of req_to_token, right behind the committed ones.
        rows = forward_batch.req_pool_indices.to(torch.int64)
        seq_lens = forward_batch.seq_lens.to(torch.int64)
        for step, backend in enumerate(self.attn_backends):
            req_to_token = backend.req_to_token_pool.req_to_token
            backend.batch = AttentionBatch(req_to_token, rows, seq_lens + (step + 1), None)
