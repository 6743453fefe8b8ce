"""Forward passes over past positions of running requests: the draft's, to fill its cache, and the target's, to get its
hidden states once more where they were not kept."""

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sglang_nightjar.patches.seams import Seam

_BATCH = "sglang.srt.managers.schedule_batch:ScheduleBatch"

SEAMS = (
    Seam(
        "sglang.srt.model_executor.forward_batch_info:ForwardBatch.init_new",
        ("batch", "model_runner", "capture_hidden_mode", "return_hidden_states_before_norm"),
        "call",
        "to fill the draft's cache for positions that it missed",
    ),
    Seam(
        "sglang.srt.speculative.eagle_info:EagleDraftExtendInput",
        None,
        "call",
        "to hand hidden states to the draft",
    ),
    Seam(
        "sglang.srt.layers.logits_processor:autotune_dummy_run_mode",
        (),
        "call",
        "to leave out the draft's head where nobody reads what it says",
    ),
    *(
        Seam(f"{_BATCH}.{name}", None, "field", "to extend a part of a batch's requests")
        for name in ("req_pool_indices", "seq_lens", "out_cache_loc", "sampling_info", "prefix_lens", "extend_lens")
    ),
)


@dataclass(frozen=True)
class Piece:
    """Positions [first, last) of the request that is number ``index`` in its batch."""

    index: int
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class FirstDrafts:
    """What a request's next chain starts from.

    Attributes:
        drafts: the draft's own ids, int64 ``[requests, 1]``.
        chances: how likely each is to be accepted, float32 ``[requests, 1]``; 1 where that is not known.
        states: its states to carry on, ``[requests, hidden]``; None of a draft that has none beside its cache.
    """

    drafts: torch.Tensor
    chances: torch.Tensor
    states: torch.Tensor | None


def slots_of(batch: Any, piece: Piece) -> torch.Tensor:
    """The KV slots of ``piece``, int64 ``[len(piece)]``."""
    row = int(batch.req_pool_indices_cpu[piece.index])
    return batch.req_to_token_pool.req_to_token[row, piece.first : piece.last].to(torch.int64)


def draft_extend(
    draft_worker: Any,
    batch: Any,
    pieces: Sequence[Piece],
    slots: torch.Tensor,
    hidden: torch.Tensor | None,
    tokens: torch.Tensor,
    drafts: bool = True,
) -> FirstDrafts | None:
    """Run the draft over ``pieces``, at most one per request.

    Args:
        draft_worker: SGLang's ``EagleDraftWorker``.
        batch: the ``ScheduleBatch`` that the pieces' requests are in; left unchanged.
        slots, hidden, tokens: of the pieces' positions, end to end: KV slots int64 ``[n]``, the target's hidden states
            ``[n, width]`` (None if the draft reads none), and the tokens *after* the positions, int64 ``[n]``.
        drafts: False only fills the cache: a complete model's head costs as much as several of its layers.

    Returns:
        What is drafted from each piece's last position, or None.
    """
    from sglang.srt.speculative.eagle_info import EagleDraftExtendInput

    info = EagleDraftExtendInput(hidden_states=hidden, num_tokens_per_req=1, num_tokens_for_logprob_per_req=1)
    sub = _sub_batch(batch, pieces, slots, tokens, info)
    if draft_worker.device == "cpu":
        from sglang_nightjar.cpu import eagle3_draft

        ours = eagle3_draft.of(draft_worker, sub)
        if ours is not None and hidden is not None:
            return ours.read(sub, tokens, hidden, drafts)
    return through_model_runner(draft_worker, sub, drafts)


def through_model_runner(draft_worker: Any, sub: Any, drafts: bool) -> FirstDrafts | None:
    """`draft_extend` on SGLang's own path: by what ``sub``, a ``ScheduleBatch``, extends its requests."""
    from sglang.srt.layers.logits_processor import autotune_dummy_run_mode
    from sglang.srt.layers.moe.utils import speculative_moe_a2a_backend_context, speculative_moe_backend_context
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode

    if not drafts:
        # Or they would be drawn from logits that are not there.
        sub.sampling_info = None
    capture = CaptureHiddenMode.NULL if sub.spec_info.hidden_states is None else CaptureHiddenMode.LAST
    with (
        draft_worker.draft_tp_context(draft_worker.draft_runner.tp_group),
        speculative_moe_backend_context(),
        speculative_moe_a2a_backend_context(),
        contextlib.nullcontext() if drafts else autotune_dummy_run_mode(),
    ):
        output = _forward(draft_worker.draft_runner, sub, capture)
    if not drafts:
        return None
    drafts = torch.argmax(output.next_token_logits, dim=-1, keepdim=True)
    return FirstDrafts(drafts, torch.ones_like(drafts, dtype=torch.float32), output.hidden_states)


def target_states(target_runner: Any, batch: Any, piece: Piece, tokens: torch.Tensor) -> torch.Tensor:
    """The target's hidden states ``[len(piece), width]`` of positions whose KV it has; ``tokens`` int64 at them.

    What the target writes goes to the padding slot, so its own cache stays as it is, bit for bit.
    """
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode

    sub = _sub_batch(batch, [piece], torch.zeros_like(tokens), tokens, None)
    sub.sampling_info = None
    return _forward(target_runner, sub, CaptureHiddenMode.FULL).hidden_states


def _forward(runner: Any, batch: Any, capture: Any) -> Any:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    forward_batch = ForwardBatch.init_new(
        batch, runner, capture_hidden_mode=capture, return_hidden_states_before_norm=False
    )
    forward_batch.return_logprob = False
    return runner.forward(forward_batch).logits_output


def _sub_batch(batch: Any, pieces: Sequence[Piece], slots: torch.Tensor, tokens: torch.Tensor, info: Any) -> Any:
    """A ``ScheduleBatch`` that extends the requests of ``pieces`` by them."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    device = batch.seq_lens.device
    chosen_cpu = torch.tensor([piece.index for piece in pieces], dtype=torch.int64)
    chosen = chosen_cpu.to(device)
    ends = torch.tensor([piece.last for piece in pieces], dtype=torch.int64)
    sub = copy.copy(batch)
    sub.forward_mode = ForwardMode.EXTEND
    sub.reqs = [batch.reqs[piece.index] for piece in pieces]
    sub.input_ids = tokens
    sub.out_cache_loc = slots
    sub.req_pool_indices = batch.req_pool_indices[chosen]
    sub.req_pool_indices_cpu = batch.req_pool_indices_cpu[chosen_cpu]
    sub.seq_lens_cpu, sub.seq_lens = ends, ends.to(device)
    sub.orig_seq_lens = sub.seq_lens.to(torch.int32)
    sub.seq_lens_sum = int(ends.sum())
    sub.prefix_lens = [piece.first for piece in pieces]
    sub.extend_lens = [len(piece) for piece in pieces]
    sub.extend_num_tokens = sum(sub.extend_lens)
    sub.extend_logprob_start_lens = list(sub.extend_lens)
    sub.extend_input_logprob_token_ids = None
    sub.return_logprob = sub.has_grammar = False
    sub.multimodal_inputs = [None] * len(pieces)
    sub.top_logprobs_nums = [0] * len(pieces)
    sub.token_ids_logprobs = [None] * len(pieces)
    sub.sampling_info = _sampling_of(batch.sampling_info, chosen)
    sub.spec_info = info
    return sub


def _sampling_of(info: Any, chosen: torch.Tensor) -> Any:
    """What the draft's draws need of the chosen requests' sampling parameters."""
    part = copy.copy(info)
    for name in ("temperatures", "top_ps", "top_ks", "min_ps", "sampling_seed"):
        value = getattr(info, name)
        setattr(part, name, None if value is None else value[chosen])
    part.penalizer_orchestrator = part.grammars = None
    return part
