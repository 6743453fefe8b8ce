"""γ=0 as a decode step of the target, instead of the verification of a chain of one token.

Only the forward pass differs: sampling, grammars, penalties and logprobs stay SGLang's of a verification, which has one
row per request here.
"""

from typing import Any


def is_possible(verify_input: Any, req_to_token_pool: Any, batch: Any, target_worker: Any) -> bool:
    """Whether this one-token verification can be a decode step.

    Not for models with recurrent state, whose verification keeps books of its own, nor where the γ=0 graphs of the
    target were captured for verification.
    """
    runner = target_worker.model_runner
    graphs = runner.decode_cuda_graph_runner
    return (
        verify_input.draft_token_num == 1
        and not batch.forward_mode.is_idle()
        and not hasattr(req_to_token_pool, "mamba_allocator")
        and not hasattr(batch.token_to_kv_pool_allocator, "c4_attn_allocator")
        and (graphs is None or graphs.capture_forward_mode.is_decode())
    )


def prepare(verify_input: Any, req_to_token_pool: Any, batch: Any, target_worker: Any) -> tuple[Any, bool]:
    """As SGLang's ``eagle_prepare_for_verify``: the ``ForwardBatch``, and whether a CUDA graph runs it."""
    import torch
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode

    runner = target_worker.model_runner
    seq_lens, seq_lens_cpu = batch.seq_lens, batch.seq_lens_cpu
    batch.input_ids = verify_input.draft_token.to(torch.int64)
    # One slot each is a plain lookup; SGLang's function for spans costs a fifth of a millisecond more on a CPU.
    batch.out_cache_loc = req_to_token_pool.req_to_token[batch.req_pool_indices, seq_lens].to(torch.int64)
    batch.forward_mode = ForwardMode.DECODE
    # A decode step counts its new token; everything after the forward pass expects the length before it.
    batch.spec_info, batch.seq_lens, batch.seq_lens_sum = None, seq_lens + 1, None
    if seq_lens_cpu is not None:
        batch.seq_lens_cpu = seq_lens_cpu + 1
    keeps_states = not runner.spec_algorithm.is_standalone()
    forward_batch = ForwardBatch.init_new(
        batch,
        runner,
        capture_hidden_mode=CaptureHiddenMode.FULL if keeps_states else CaptureHiddenMode.NULL,
        return_hidden_states_before_norm=False,
    )
    batch.spec_info, batch.seq_lens, batch.seq_lens_cpu = verify_input, seq_lens, seq_lens_cpu
    batch.seq_lens_sum = None if seq_lens_cpu is None else int(seq_lens_cpu.sum())
    graphs = runner.decode_cuda_graph_runner
    if graphs is None or not graphs.can_run_graph(forward_batch):
        return forward_batch, False
    graphs.load_batch(forward_batch)
    forward_batch.mark_forward_metadata_ready()
    return forward_batch, True
