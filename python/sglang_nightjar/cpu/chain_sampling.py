"""Speculative sampling over a draft chain, for any temperature, top-k, top-p and min-p.

A verify step draws one token from the target's distribution p at every position of the chain and keeps the longest
prefix of drafts that equal their draws; the first draw that differs is the correction, and after a wholly accepted
chain the last draw is the bonus token. Each draw is used only if all drafts before it were accepted, that is if it was
conditioned on tokens that are really committed: the committed text is distributed as the target's own, whatever the
drafts are. If they are the draft head's argmax x, this is rejection sampling (Leviathan et al. 2023, Chen et al. 2023)
with a proposal that has all its mass on x: x is accepted with probability min(1, p(x) / 1), and another draw is
distributed as max(0, p - q) normalised.

An argmax is accepted with probability p(x) at most, however good the draft head is. So the head draws too, from its own
distribution q, with the same Gumbel noise that the verification will use (noise.py): they agree with probability 1
where p = q, and at least (1 - d) / (1 + d) at a total variation distance d. Rejection sampling with a q that is handed
on would reach 1 - d, a little more, but needs q kept for every draft through every change of the batch and of the
chain's length; the noise is a function of request and position, and needs nothing.

With per-request seeds the draws are a function of seed and position, made by SGLang's own sampler: then the text is
not only distributed as without speculation, it is the same text, and drafts are argmaxes.
"""

from typing import Any

import torch

from sglang_nightjar.cpu import chain_verify, noise, sampling


def temperatures_of(sampling_info: Any) -> torch.Tensor:
    """Float32 ``[batch]``, 0 for greedy requests (SGLang keeps them as temperature 1 with ``top_ks == 1``)."""
    return torch.where(sampling_info.top_ks == 1, 0.0, sampling_info.temperatures.flatten().float())


def draw_targets(
    logits: torch.Tensor, sampling_info: Any, owners: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor
) -> torch.Tensor:
    """One token from the target's distribution at every position of every chain.

    Args:
        logits: float32 ``[rows, vocab]``, penalties, bias and grammar applied; left unchanged.
        sampling_info: SGLang's ``SamplingBatchInfo`` of the batch.
        owners: int64 ``[rows]``, the index of each row's request.
        positions: int64 ``[rows]``, the position of each row's input token.
        slots: int64 ``[batch]``, the requests' rows in ``req_to_token``.

    Returns:
        int64 ``[rows]``.
    """

    def per_row(value: torch.Tensor) -> torch.Tensor:
        return value[owners]

    info = sampling_info
    if info.sampling_seed is not None:
        return _draw_with_seeds(logits, info, per_row, positions)
    temperatures = per_row(temperatures_of(info))
    keys = noise.dice.keys(per_row(slots), positions)
    if not (info.need_top_k_sampling or info.need_top_p_sampling or info.need_min_p_sampling):
        noisy = logits.float().clone()
        noise.add_gumbel_(noisy, temperatures, keys)
        return chain_verify.argmax(noisy)
    probs = torch.softmax(logits.float() / per_row(info.temperatures), dim=-1)
    values, tokens = sampling.keep(probs, per_row(info.top_ks), per_row(info.top_ps), per_row(info.min_ps))
    noisy = values.log()
    noise.add_gumbel_(noisy, torch.where(temperatures == 0, 0.0, 1.0), keys, tokens)
    drawn = tokens.gather(1, noisy.argmax(-1, keepdim=True)).flatten()
    # Logits that differ by less than a probability's rounding tie after softmax; greedy requests must not notice.
    return torch.where(temperatures == 0, chain_verify.argmax(logits), drawn)


def _draw_with_seeds(logits: torch.Tensor, info: Any, per_row: Any, positions: torch.Tensor) -> torch.Tensor:
    from sglang.srt.layers.sampler import sampling_from_probs_torch, top_k_top_p_min_p_sampling_from_probs_torch

    probs = torch.softmax(logits.float() / per_row(info.temperatures), dim=-1)
    seeds = per_row(info.sampling_seed)
    if not (info.need_top_k_sampling or info.need_top_p_sampling or info.need_min_p_sampling):
        return sampling_from_probs_torch(probs, sampling_seed=seeds, positions=positions).to(torch.int64)
    top_ks = per_row(info.top_ks)
    drawn = top_k_top_p_min_p_sampling_from_probs_torch(
        probs, top_ks, per_row(info.top_ps), per_row(info.min_ps), info.need_min_p_sampling, seeds, positions
    )
    return torch.where(top_ks == 1, logits.argmax(dim=-1), drawn.to(torch.int64))


def draw_drafts_(
    logits: torch.Tensor,
    sampling_info: Any,
    owners: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    vocabulary: torch.Tensor | None,
) -> None:
    """Adds noise to a draft head's logits, in place, so that their argmax is a draw from its distribution.

    Args:
        logits: float32 ``[rows, draft vocab]``.
        sampling_info: SGLang's ``SamplingBatchInfo`` of the batch; with seeds nothing is done.
        owners: int64 ``[rows]``, the index of each row's request.
        positions: int64 ``[rows]``, the draft's positions. The draft reads a token one place further on than
            the target does at the same position, so what it proposes at t is verified by the target's row at t + 1.
        slots: int64 ``[batch]``, the requests' rows in ``req_to_token``.
        vocabulary: the target's id of every draft token, int64 ``[draft vocab]``; None if they are the same.
    """
    if sampling_info.is_all_greedy or sampling_info.sampling_seed is not None:
        return
    keys = noise.dice.keys(slots[owners], positions + 1)
    noise.add_gumbel_(logits, temperatures_of(sampling_info)[owners], keys, vocabulary)
