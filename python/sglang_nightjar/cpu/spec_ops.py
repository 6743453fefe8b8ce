"""Bookkeeping of speculative decoding on a CPU: the functions that SGLang imports from ``sgl_kernel``.

Same names, arguments and in-place results as SGLang 0.5.17 expects (importers: srt/mem_cache/allocation.py,
kernels/ops/speculative/{cache_locs,eagle}.py, kernels/ops/kvcache/cache_move.py, srt/speculative/eagle_utils.py and
eagle_worker_common.py). Only chains are supported, that is ``--speculative-eagle-topk 1``: everything that needs a tree
raises ``NotImplementedError``.

Index tensors may be int32 or int64; ``req_to_token`` is int32 ``[max_requests + 1, max_context]``.
"""

import ctypes

import numpy as np
import torch

# A few numbers of each request are read and written here, for which torch's operators take twenty times as long as
# NumPy's: between two forward passes nothing of theirs is left in a cache.

TREE_UNSUPPORTED = "the CPU engine supports draft chains only: start with --speculative-eagle-topk 1"


def _ragged_positions(rows: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in ``req_to_token`` of every position in ``[start_i, end_i)`` of every request, request by request.

    All arguments are ``[batch]``. Returns two arrays ``[sum(end - start)]``.
    """
    rows, start, end = rows.numpy(), start.numpy(), end.numpy()
    if (end - start == 1).all():
        # A decode step: one position of each request.
        return rows, start
    column = start[:, None] + np.arange((end - start).max(initial=0))
    inside = column < end[:, None]
    return np.broadcast_to(rows[:, None], column.shape)[inside], column[inside]


def assign_req_to_token_pool_cpu(req_pool_indices, req_to_token, start_offset, end_offset, out_cache_loc, pool_len):
    """Write ``out_cache_loc`` (flat, request by request) to ``req_to_token[row_i, start_i:end_i]``."""
    row, column = _ragged_positions(req_pool_indices, start_offset, end_offset)
    req_to_token.numpy()[row, column] = out_cache_loc.numpy()[: row.size]


def assign_extend_cache_locs_cpu(req_pool_indices, req_to_token, start_offset, end_offset, out_cache_loc, pool_len):
    """Read ``req_to_token[row_i, start_i:end_i]`` into ``out_cache_loc``, request by request."""
    row, column = _ragged_positions(req_pool_indices, start_offset, end_offset)
    out_cache_loc.numpy()[: row.size] = req_to_token.numpy()[row, column]


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices, req_to_token, seq_lens, out_cache_loc, pool_len, topk, num_steps
):
    """Read the ``topk * num_steps`` slots after each request's length into ``out_cache_loc``."""
    end = seq_lens + topk * num_steps
    assign_extend_cache_locs_cpu(req_pool_indices, req_to_token, seq_lens, end, out_cache_loc, pool_len)


def build_draft_decode_metadata_cpu(req_to_token, req_pool_indices, seq_lens, topk, num_steps, pool_len):
    """Rows of ``req_to_token`` as the draft's decode steps see them: int32 ``[batch, pool_len]``.

    With a chain the draft tokens' slots follow the prefix in the request's own row, so this is a plain gather.
    """
    if topk != 1:
        raise NotImplementedError(TREE_UNSUPPORTED)
    return req_to_token[req_pool_indices.to(torch.int64)]


def build_tree_kernel_efficient_cpu(
    parent_list,
    top_scores_index,
    seq_lens,
    tree_mask,
    positions,
    retrieve_index,
    retrieve_next_token,
    retrieve_next_sibling,
    topk,
    spec_steps,
    num_verify_tokens,
    tree_mask_mode,
):
    """Describe each request's chain of ``n = num_verify_tokens`` tokens (the bonus token, then the draft's).

    Fills ``positions`` ``[batch * n]``, ``retrieve_index`` and ``retrieve_next_token`` ``[batch, n]`` in place;
    ``retrieve_next_sibling`` keeps the caller's -1. ``tree_mask`` is left alone: a chain's mask is the causal one.
    """
    if topk != 1:
        raise NotImplementedError(TREE_UNSUPPORTED)
    batch = seq_lens.numel()
    depth = torch.arange(num_verify_tokens)
    positions.view(batch, -1).copy_(seq_lens.view(-1, 1) + depth)
    retrieve_index.copy_(torch.arange(batch * num_verify_tokens).view(batch, -1))
    retrieve_next_token[:, :-1] = depth[1:]
    retrieve_next_token[:, -1] = -1


def verify_tree_greedy_cpu(
    predicts,
    accept_index,
    accept_token_num,
    candidates,
    retrive_index,
    retrive_next_token,
    retrive_next_sibling,
    target_predict,
):
    """Accept the longest prefix of the chain that the target's argmax agrees with.

    ``candidates`` and ``target_predict`` are ``[batch, n]``. Writes ``predicts`` ``[batch * n]`` (the target's token at
    every accepted position, the last of them the bonus token), ``accept_index`` ``[batch, n]`` (flat indices of
    accepted positions, -1 after them) and ``accept_token_num`` ``[batch]`` (accepted draft tokens, no bonus token).
    """
    accepted = leading_matches(candidates, target_predict)
    write_accepted_chain(predicts, accept_index, accept_token_num, target_predict, accepted)


def leading_matches(candidates: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """How many drafts of each chain equal the target's token in front of them, up to the first that does not.

    Both are ``[batch, n]``; ``candidates[:, 0]`` is the bonus token, not a draft. Returns int64 ``[batch]``.
    """
    agrees = candidates.numpy()[:, 1:] == tokens.numpy()[:, :-1]
    return torch.from_numpy(np.logical_and.accumulate(agrees, axis=1).sum(axis=1))


def write_accepted_chain(predicts, accept_index, accept_token_num, tokens, accepted) -> None:
    """Store a chain's verdict in the form that SGLang reads: ``accepted + 1`` of ``tokens`` ``[batch, n]`` count."""
    batch, width = tokens.shape
    kept = np.arange(width) <= accepted.numpy()[:, None]
    flat = np.arange(batch * width).reshape(batch, width)
    predicts.numpy().reshape(batch, width)[...] = np.where(kept, tokens.numpy(), 0)
    accept_index.numpy()[...] = np.where(kept, flat, -1)
    accept_token_num.numpy()[...] = accepted.numpy()


def fill_bonus_tokens_cpu(accept_tokens, accept_lens, bonus_tokens, accept_stride):
    """``bonus_tokens[i]`` = the last accepted token of request i; ``accept_lens`` counts the bonus token."""
    width = int(accept_stride)
    last = (accept_lens.to(torch.int64) - 1).view(-1, 1)
    bonus_tokens.copy_(accept_tokens.view(-1, width).gather(1, last).view(-1))


def fill_accept_out_cache_loc_cpu(accept_index, out_cache_loc, accept_out_cache_loc):
    raise NotImplementedError(TREE_UNSUPPORTED)


def rotate_input_ids_cpu(*args):
    raise NotImplementedError("the CPU engine does not support multi-layer EAGLE drafts")


def copy_all_layer_kv_cache_cpu(data_ptrs, strides, tgt_loc, src_loc):
    """Copy cache rows ``src_loc`` to ``tgt_loc`` in every buffer.

    ``data_ptrs`` uint64 and ``strides`` (bytes per row) are ``[2 * layers]``. All rows are read before any is written,
    so the two sets may overlap.
    """
    targets, sources = tgt_loc.tolist(), src_loc.tolist()
    for base, stride in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        rows = [ctypes.string_at(base + source * stride, stride) for source in sources]
        for target, row in zip(targets, rows, strict=True):
            ctypes.memmove(base + target * stride, row, stride)
