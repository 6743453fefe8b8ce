"""Speculative sampling over a draft chain, for any temperature, top-k, top-p and min-p.

The drafts of a chain (``topk=1``) are the draft head's argmax, so the proposal distribution q puts all its mass on the
drafted token x. Rejection sampling (Leviathan et al. 2023, Chen et al. 2023) then accepts x with probability
min(1, p(x) / q(x)) = p(x), and on rejection draws from max(0, p - q) normalised, which is p without x. Drawing t from p
and accepting x if and only if t = x does exactly that: t = x happens with probability p(x), and given t != x, t is
distributed as p without x. So a verify step draws one token from the target's distribution at every position of the
chain and keeps the longest prefix of drafts that equal their draws; the first draw that differs is the correction, and
after a wholly accepted chain the last draw is the bonus token. Each draw is used only if all drafts before it were
accepted, that is if it was conditioned on tokens that are really committed: the committed text is distributed as the
target's own.

With per-request seeds the draws are a function of seed and position, made by SGLang's own sampler: then the text is
not only distributed as without speculation, it is the same text.
"""

from typing import Any

import torch


def draw_targets(logits: torch.Tensor, sampling_info: Any, width: int, positions: torch.Tensor) -> torch.Tensor:
    """One token from the target's distribution at every position of every chain, by SGLang's own sampler.

    Args:
        logits: float ``[batch * width, vocab]``, penalties, bias and grammar applied; left unchanged.
        sampling_info: SGLang's ``SamplingBatchInfo`` of the batch (greedy requests have ``top_ks == 1``).
        width: positions of a chain, the bonus token's included.
        positions: int64 ``[batch * width]``, the position of each row's input token; only seeds use it.

    Returns:
        int64 ``[batch * width]``.
    """
    from sglang.srt.layers.sampler import sampling_from_probs_torch, top_k_top_p_min_p_sampling_from_probs_torch

    def per_row(value: torch.Tensor) -> torch.Tensor:
        return torch.repeat_interleave(value, width, dim=0)

    info = sampling_info
    probs = torch.softmax(logits.float() / per_row(info.temperatures), dim=-1)
    seeds = None if info.sampling_seed is None else per_row(info.sampling_seed)
    if not (info.need_top_k_sampling or info.need_top_p_sampling or info.need_min_p_sampling):
        return sampling_from_probs_torch(probs, sampling_seed=seeds, positions=positions).to(torch.int64)
    top_ks = per_row(info.top_ks)
    drawn = top_k_top_p_min_p_sampling_from_probs_torch(
        probs, top_ks, per_row(info.top_ps), per_row(info.min_ps), info.need_min_p_sampling, seeds, positions
    )
    # Logits that differ by less than a probability's rounding tie after softmax; greedy requests must not notice.
    return torch.where(top_ks == 1, logits.argmax(dim=-1), drawn.to(torch.int64))
