"""γ=0 as a decode step of the target, instead of the verification of a chain of one token.

Only the forward pass differs: sampling, grammars, penalties and logprobs stay SGLang's of a verification, which has one
row per request here. On a CPU, where every call counts, what a verification does for streams, trees and rejected tokens
is left out, too (`verify_one_each`).
"""

from typing import Any

from sglang_nightjar.patches.seams import Seam

_SPEC_UTILS = "sglang.srt.speculative.spec_utils"

SEAMS = (
    Seam(
        f"{_SPEC_UTILS}:GrammarTree.from_device",
        ("retrieve_next_token", "retrieve_next_sibling", "draft_token"),
        "call",
        "grammars at γ=0 on a CPU",
    ),
    Seam(
        f"{_SPEC_UTILS}:build_grammar_vocab_mask",
        ("reqs", "tree", "sampling_info", "device", "barrier"),
        "call",
        "grammars at γ=0 on a CPU",
    ),
    Seam(
        "sglang.srt.layers.logprob_processor:compute_spec_v2_logprobs",
        ("batch", "logits_output", "predict", "accept_index", "speculative_num_steps"),
        "call",
        "logprobs at γ=0 on a CPU",
    ),
    Seam("sglang.srt.managers.utils:GenerationBatchResult", None, "call", "what a step at γ=0 on a CPU returns"),
)


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
    batch.out_cache_loc = _slots_at(req_to_token_pool.req_to_token, batch.req_pool_indices, seq_lens)
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


def _slots_at(req_to_token: Any, rows: Any, positions: Any) -> Any:
    """The slot of one position of each request, int64; SGLang's function for spans takes longer."""
    import torch

    if req_to_token.device.type == "cpu":
        return torch.from_numpy(req_to_token.numpy()[rows.numpy(), positions.numpy()].astype("int64"))
    return req_to_token[rows, positions].to(torch.int64)


def verify_one_each(worker: Any, batch: Any, grammar_barrier: Any) -> Any:
    """As SGLang's ``run_eagle_verify`` of chains of one token that `is_possible` allows, on a CPU.

    Every token that the target gives counts, so there is nothing to select, to move or to wait for.
    """
    from sglang.srt.layers.logprob_processor import compute_spec_v2_logprobs
    from sglang.srt.managers.utils import GenerationBatchResult
    from sglang.srt.speculative import eagle_utils, spec_utils
    from sglang.srt.speculative.eagle_info import EagleDraftInput
    from sglang.srt.utils.async_probe import maybe_detect_inf, maybe_detect_nan

    verify_input, grammar_mask = batch.spec_info, None
    forward_batch, _ = prepare(verify_input, worker.req_to_token_pool, batch, worker.target_worker)
    output = worker.target_worker.forward_batch_generation(batch=None, forward_batch=forward_batch, is_verify=True)
    logits = output.logits_output
    if batch.has_grammar:
        chain = verify_input.retrieve_next_token
        tree = spec_utils.GrammarTree.from_device(
            chain, verify_input.retrieve_next_sibling, verify_input.draft_token.view(chain.shape)
        )
        grammar_mask = spec_utils.build_grammar_vocab_mask(
            reqs=batch.reqs, tree=tree, sampling_info=batch.sampling_info, device=chain.device, barrier=grammar_barrier
        )
    maybe_detect_nan(logits.next_token_logits, "verify: target model logits")
    maybe_detect_inf(logits.next_token_logits, "verify: target model logits")
    tokens, counts, index = eagle_utils.eagle_sample(verify_input, batch, logits, grammar_mask)
    if batch.return_logprob:
        compute_spec_v2_logprobs(batch, logits, tokens, index, 0)
    return GenerationBatchResult(
        logits_output=logits,
        next_token_ids=tokens,
        can_run_cuda_graph=False,
        speculative_num_draft_tokens=1,
        next_draft_input=EagleDraftInput(bonus_tokens=tokens),
        accept_lens=counts,
        new_seq_lens=batch.seq_lens + 1,
        routed_experts_output=output.routed_experts_output,
        indexer_topk_output=output.indexer_topk_output,
    )
