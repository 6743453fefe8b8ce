"""Attention over the paged KV cache in plain torch: slow, obviously right, what the C++ kernels are compared with.

Signatures and in-place results are those of ``sgl_kernel``'s operators, as SGLang 0.5.17 calls them
(srt/layers/attention/intel_amx_backend.py). The cache has page size 1: ``k_cache`` and ``v_cache`` are
``[slots, kv_heads, head_dim]`` and ``req_to_token[row, position]`` names the slot of a position.
"""

import torch


def refuse_unsupported(is_cross_attention, encoder_lens, sinks, tree_mask=None) -> None:
    """Raise ``NotImplementedError`` for what Llama-family models never ask for."""
    if is_cross_attention or encoder_lens is not None:
        raise NotImplementedError("the CPU engine has no cross attention")
    if sinks is not None:
        raise NotImplementedError("the CPU engine has no attention sinks")
    if tree_mask is not None:
        raise NotImplementedError("the CPU engine supports draft chains only: start with --speculative-eagle-topk 1")


def attend_one_request(query, keys, values, first_position, scaling, logit_cap, window):
    """Causal attention of consecutive rows of one request, in the dtype of ``query``.

    ``query`` is ``[rows, heads, d]`` and stands at positions ``first_position ..``; ``keys`` ``[length, kv_heads, d]``
    and ``values`` ``[length, kv_heads, d_v]`` hold positions ``0 ..``. ``window`` is the number of keys that a row may
    see, itself included; 0 means all. Returns ``[rows, heads, d_v]``.
    """
    rows, heads, _ = query.shape
    group = heads // keys.shape[1]
    keys = keys.to(query.dtype).repeat_interleave(group, dim=1)
    values = values.to(query.dtype).repeat_interleave(group, dim=1)
    scores = torch.einsum("rhd,khd->hrk", query, keys) * scaling
    if logit_cap > 0:
        scores = logit_cap * torch.tanh(scores / logit_cap)
    row_position = (first_position + torch.arange(rows)).view(-1, 1)
    key_position = torch.arange(keys.shape[0]).view(1, -1)
    hidden = key_position > row_position
    if window > 0:
        hidden |= key_position <= row_position - window
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
    return torch.einsum("hrk,khd->rhd", weights, values)


def decode_attention_cpu(
    query,
    k_cache,
    v_cache,
    output,
    key,
    value,
    loc,
    attn_logits,
    req_to_token,
    req_pool_indices,
    seq_lens,
    scaling,
    logit_cap,
    is_cross_attention,
    window,
    encoder_lens,
    sinks,
):
    """One new row per request: store its key and value at ``loc``, then attend to ``seq_lens[i]`` positions.

    ``query`` ``[batch, heads, d]``; ``output`` ``[batch, heads, d_v]`` is written. ``attn_logits`` is scratch, unused.
    """
    refuse_unsupported(is_cross_attention, encoder_lens, sinks)
    if key is not None:
        k_cache[loc] = key.view(-1, *k_cache.shape[1:]).to(k_cache.dtype)
        v_cache[loc] = value.view(-1, *v_cache.shape[1:]).to(v_cache.dtype)
    for i, (row, length) in enumerate(zip(req_pool_indices.tolist(), seq_lens.tolist(), strict=True)):
        slots = req_to_token[row, :length].to(torch.int64)
        one = query[i : i + 1].float()
        out = attend_one_request(one, k_cache[slots], v_cache[slots], length - 1, scaling, logit_cap, window)
        output[i].copy_(out[0])


def extend_attention_cpu(
    query,
    key,
    value,
    output,
    k_cache,
    v_cache,
    req_to_token,
    req_pool_indices,
    seq_lens,
    extend_seq_lens,
    extend_start_loc,
    max_len_extend,
    scaling,
    logit_cap,
    is_cross_attention,
    window,
    encoder_lens,
    sinks,
    tree_mask,
):
    """Ragged new rows per request, the last ``extend_seq_lens[i]`` of ``seq_lens[i]`` positions, causal among themselves.

    Covers prefill after a cached prefix, the verification of a draft chain and draft-extend. The new rows' keys and
    values are already in the cache. ``query`` ``[rows, heads, d]``, request i from row ``extend_start_loc[i]``;
    ``output`` ``[rows, heads, d_v]`` is written.
    """
    refuse_unsupported(is_cross_attention, encoder_lens, sinks, tree_mask)
    for row, length, new, start in zip(
        req_pool_indices.tolist(), seq_lens.tolist(), extend_seq_lens.tolist(), extend_start_loc.tolist(), strict=True
    ):
        slots = req_to_token[row, :length].to(torch.int64)
        rows = query[start : start + new].float()
        out = attend_one_request(rows, k_cache[slots], v_cache[slots], length - new, scaling, logit_cap, window)
        output[start : start + new].copy_(out)
