"""Attention over the paged KV cache in plain torch: slow, obviously right, what the C++ kernel is compared with.

The cache has page size 1: ``k_cache`` and ``v_cache`` are ``[slots, kv_heads, head_dim]`` and
``req_to_token[row, position]`` names the slot of a position.
"""

import torch


def refuse_unsupported(is_cross_attention: bool, encoder_lens: torch.Tensor | None, sinks: torch.Tensor | None) -> None:
    """Raise ``NotImplementedError`` for what Llama-family models never ask for."""
    if is_cross_attention or encoder_lens is not None:
        raise NotImplementedError("the CPU engine has no cross attention")
    if sinks is not None:
        raise NotImplementedError("the CPU engine has no attention sinks")


def attend_one_request(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    first_position: int,
    scaling: float,
    logit_cap: float,
    window: int,
) -> torch.Tensor:
    """Causal attention of consecutive rows of one request, in the dtype of ``query``.

    ``query`` is ``[rows, heads, d]`` and stands at positions ``first_position ..``; ``keys`` and ``values``
    ``[length, kv_heads, d]`` hold positions ``0 ..``. ``window`` is the number of keys that a row may see, itself
    included; 0 means all. Returns ``[rows, heads, d]``.
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


def paged_attention(
    query: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    output: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    extend_lens: torch.Tensor | None,
    scaling: float,
    logit_cap: float,
    window: int,
    compute_dtype: torch.dtype = torch.float32,
) -> None:
    """The same function as ``torch.ops.nightjar.paged_attention`` (csrc/attention.h), written to ``output``.

    Request i's new rows are the last ``extend_lens[i]`` (None: one each) of its ``seq_lens[i]`` positions, causal among
    themselves; the rows of all requests follow each other in ``query`` and ``output`` ``[rows, heads, d]``. Their keys
    and values are already in the cache.
    """
    new_rows = [1] * len(seq_lens) if extend_lens is None else extend_lens.tolist()
    start = 0
    for row, length, new in zip(req_pool_indices.tolist(), seq_lens.tolist(), new_rows, strict=True):
        slots = req_to_token[row, :length].to(torch.int64)
        rows = query[start : start + new].to(compute_dtype)
        out = attend_one_request(rows, k_cache[slots], v_cache[slots], length - new, scaling, logit_cap, window)
        output[start : start + new].copy_(out)
        start += new
