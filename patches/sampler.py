"""layers/sampler.py, SGLang 0.5.17: faster draws on a CPU (cpu/sampling.py), with the same distributions.

``torch.multinomial`` draws a random number for every token of the vocabulary, and the filters sort all of it: at batch
32 and a vocabulary of 49,152 that takes longer than the model. Draws with a seed stay SGLang's. Greedy batches take
their argmax with our kernel (cpu/chain_verify.py).
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.cpu import chain_verify, sampling
from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_MODULE = "sglang.srt.layers.sampler"
_FILTERED = "top_k_top_p_min_p_sampling_from_probs_torch"

SEAMS = (
    Seam(
        f"{_MODULE}:Sampler.forward",
        ("logits_output", "sampling_info", "return_logprob", "top_logprobs_nums", "token_ids_logprobs", "positions"),
        "hook",
        "for a fast argmax",
    ),
    Seam(f"{_MODULE}:Sampler._preprocess_logits", ("logits", "sampling_info"), "call", "before the argmax"),
    Seam(
        f"{_MODULE}:Sampler._sync_token_ids_across_tp",
        ("batch_next_token_ids", "sampling_info"),
        "call",
        "after the argmax",
    ),
    Seam(
        f"{_MODULE}:sampling_from_probs_torch",
        ("probs", "sampling_seed", "positions"),
        "hook",
        "to draw without a random number per token of the vocabulary",
    ),
    Seam(
        f"{_MODULE}:{_FILTERED}",
        ("probs", "top_ks", "top_ps", "min_ps", "need_min_p_sampling", "sampling_seed", "positions"),
        "hook",
        "to filter without sorting the vocabulary",
    ),
)


def forward(
    original: Callable[..., torch.Tensor],
    sampler: Any,
    logits_output: Any,
    sampling_info: Any,
    return_logprob: bool,
    *arguments: Any,
    **named: Any,
) -> torch.Tensor:
    """As Sampler.forward: the next token of each request, int64 ``[batch]``."""
    if not sampling_info.is_all_greedy or return_logprob or any(sampling_info.return_sampling_masks or []):
        return original(sampler, logits_output, sampling_info, return_logprob, *arguments, **named)
    tokens = chain_verify.argmax(sampler._preprocess_logits(logits_output.next_token_logits, sampling_info))
    sampler._sync_token_ids_across_tp(tokens, sampling_info)
    return tokens


def sample(
    original: Callable[..., torch.Tensor],
    probs: torch.Tensor,
    sampling_seed: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    if sampling_seed is not None:
        return original(probs, sampling_seed, positions)
    return sampling.draw(probs).to(torch.int32)


def sample_filtered(
    original: Callable[..., torch.Tensor],
    probs: torch.Tensor,
    top_ks: torch.Tensor,
    top_ps: torch.Tensor,
    min_ps: torch.Tensor,
    need_min_p_sampling: bool,
    sampling_seed: torch.Tensor | None,
    positions: Any,
) -> torch.Tensor:
    if sampling_seed is not None:
        return original(probs, top_ks, top_ps, min_ps, need_min_p_sampling, sampling_seed, positions)
    return sampling.sample_filtered(probs, top_ks, top_ps, min_ps).to(torch.int32)


def apply() -> None:
    HookRegistry.register(f"{_MODULE}.Sampler.forward", forward, HookType.AROUND)
    HookRegistry.register(f"{_MODULE}.sampling_from_probs_torch", sample, HookType.AROUND)
    HookRegistry.register(f"{_MODULE}.{_FILTERED}", sample_filtered, HookType.AROUND)
