"""Verification of draft chains on a CPU: what SGLang's ``eagle_sample`` does, without what it leaves out there.

SGLang 0.5.17 (srt/speculative/eagle_utils.py) takes the argmax on a CPU whatever a request asks for, gives all rows of
a chain the same penalties, counts only the last token of each step in them, and skips custom logit processors. Here
every row sees the logits that the same token would see without speculation: penalties count the drafts in front of it,
then grammar, bias and custom processors, in the order of ``ModelRunner.sample``.
"""

from typing import Any

import torch

from sglang_nightjar.cpu import chain_sampling, kernels, trim
from sglang_nightjar.cpu.penalty_states import PenaltyStates
from sglang_nightjar.cpu.spec_ops import leading_matches, write_accepted_chain

# Where a batch's penalizers are found during its forward pass (see patches/sampling_batch_info.py).
PENALIZERS = "nightjar_penalizers"


def penalizers_of(sampling_info: Any) -> Any:
    """The batch's ``BatchedPenalizerOrchestrator``, or None."""
    return getattr(sampling_info, PENALIZERS, None)


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """Greedy tokens of float ``[rows, vocab]``: int64 ``[rows]``, the first of equal ones, as ``torch.argmax`` has it.

    ``torch.argmax`` goes through a row element by element: 64 rows of 49,152 take as long as a tenth of the model.
    """
    if kernels.in_use() and logits.dtype == torch.float32 and logits.is_contiguous():
        return torch.ops.nightjar.argmax(logits)
    return torch.argmax(logits, dim=-1)


def adjust_logits(
    logits: torch.Tensor, candidates: torch.Tensor, sampling_info: Any, grammar_mask: Any
) -> PenaltyStates | None:
    """Apply everything that changes logits, in place.

    ``logits`` is ``[batch * width, vocab]``, ``candidates`` ``[batch, width]``. Returns the penalties' states after
    each candidate, or None if no request has penalties.
    """
    from sglang.srt.layers.sampler import apply_custom_logit_processor
    from sglang.srt.utils.async_probe import sanitize_nan_logits

    width = candidates.shape[1]
    states = None
    orchestrator = penalizers_of(sampling_info)
    if orchestrator is not None and orchestrator.is_required:
        states = PenaltyStates(orchestrator)
        states.penalise_chain(logits, candidates.to(torch.int64))
    if grammar_mask is not None:
        grammar_mask.apply(logits)
    if sampling_info.logit_bias is not None:
        logits.add_(torch.repeat_interleave(sampling_info.logit_bias, width, dim=0))
    if sampling_info.has_custom_logit_processor:
        apply_custom_logit_processor(logits, sampling_info, width)
    sanitize_nan_logits(logits, "verify: target model logits")
    return states


def can_leave_rows_out(batch: Any) -> bool:
    """Whether a ``ScheduleBatch`` can be verified in part: what changes logits, or tells them, wants every row."""
    info = batch.sampling_info
    penalizers = penalizers_of(info) or info.penalizer_orchestrator
    return not (
        batch.return_logprob
        or batch.has_grammar
        or info.logit_bias is not None
        or info.has_custom_logit_processor
        or (penalizers is not None and penalizers.is_required)
    )


def verify_chain(
    verify_input: Any, batch: Any, logits_output: Any, grammar_mask: Any = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Accept the longest prefix of each chain that agrees with the target's own tokens.

    Arguments and results are those of SGLang's ``eagle_sample``: ``logits_output.next_token_logits``
    ``[batch * width, vocab]`` is adjusted in place (logprobs are computed from it later). Returns int32 tensors: tokens
    ``[batch * width]`` (0 where rejected), how many of them count, bonus token included, ``[batch]``, and their flat
    indices ``[batch, width]`` (-1 where rejected).
    """
    logits, info = logits_output.next_token_logits, batch.sampling_info
    size, width = len(batch.seq_lens), verify_input.draft_token_num
    candidates = verify_input.draft_token.view(size, width)
    kept = trim.kept_of(verify_input)
    if kept is not None:
        return _verify_kept(kept, verify_input, batch, logits_output, candidates)
    states = adjust_logits(logits, candidates, info, grammar_mask)
    tokens = _draw(logits, verify_input, batch)
    if width == 1:
        # γ=0: nothing was drafted, so every token counts.
        if states is not None:
            states.keep(torch.zeros(size, dtype=torch.int64))
        return tokens.int(), torch.ones(size, dtype=torch.int32), torch.arange(size, dtype=torch.int32).view(size, 1)
    tokens = tokens.view(size, width)
    accepted = leading_matches(candidates, tokens)
    if states is not None:
        states.keep(accepted)
    return _verdict(tokens, accepted)


def _draw(logits: torch.Tensor, verify_input: Any, batch: Any, kept: trim.Kept | None = None) -> torch.Tensor:
    """The target's own tokens, int64 ``[rows]``."""
    if batch.sampling_info.is_all_greedy:
        return argmax(logits)
    positions, slots, lengths = verify_input.positions, batch.req_pool_indices, verify_input.draft_token_num
    if kept is not None:
        positions, lengths = positions[kept.rows], kept.lengths
    owners = torch.arange(len(slots)).repeat_interleave(lengths)
    return chain_sampling.draw_targets(logits, batch.sampling_info, owners, positions, slots)


def _verify_kept(
    kept: trim.Kept, verify_input: Any, batch: Any, logits_output: Any, candidates: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`verify_chain` of chains that were cut short: a draft that was not verified is not accepted.

    Gives ``logits_output.hidden_states`` ``[kept, width]`` the rows that are missing, as zeros.
    """
    size, width = candidates.shape
    logits = logits_output.next_token_logits
    adjust_logits(logits, candidates, batch.sampling_info, None)
    tokens = torch.zeros(size * width, dtype=torch.int64)
    tokens[kept.rows] = _draw(logits, verify_input, batch, kept)
    states = logits_output.hidden_states
    if states is not None:
        logits_output.hidden_states = states.new_zeros(size * width, states.shape[1])
        logits_output.hidden_states[kept.rows] = states
    tokens = tokens.view(size, width)
    return _verdict(tokens, torch.minimum(leading_matches(candidates, tokens), kept.lengths - 1))


def _verdict(tokens: torch.Tensor, accepted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    size, width = tokens.shape
    predicted = torch.empty(size * width, dtype=torch.int32)
    accept_index = torch.empty(size, width, dtype=torch.int32)
    count = torch.empty(size, dtype=torch.int32)
    write_accepted_chain(predicted, accept_index, count, tokens, accepted)
    return predicted, count + 1, accept_index
