"""The draft's part of the KV cache: kept up while drafts are wanted, left alone while γ=0, made good afterwards.

One per scheduler, called by the hooks of patches/eagle_worker_v2.py. γ=0 means no draft work at all: the target decodes
plainly, what the draft would have read is kept, and its slots are marked. When drafts are wanted again the requests of
the batch are caught up first.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from sglang_nightjar.agent.selector import GammaSelector
from sglang_nightjar.core.switch_costs import SwitchCosts
from sglang_nightjar.draft import agreement, inputs
from sglang_nightjar.draft.catch_up import CatchUp
from sglang_nightjar.draft.coverage import Coverage
from sglang_nightjar.draft.reserve import Reserve
from sglang_nightjar.once_a_minute import rate_limited
from sglang_nightjar.patches.seams import Seam

#: The cell (lag, batch size) by which news are told, and what is news.
_TYPICAL = (64, 8)
_NEWS = 0.2

#: Returns that the status shows, as (positions, µs).
_RECENT = 32

logger = logging.getLogger(__name__)

_UTILS = "sglang.srt.speculative.eagle_utils"

SEAMS = (
    Seam(f"{_UTILS}:get_draft_recurrent_hidden_state_spec", ("model_runner",), "call", "shape of the draft's state"),
    Seam(
        "sglang.srt.managers.scheduler:Scheduler._apply_war_barrier",
        (),
        "call",
        "it waits for an event that at γ=0 nobody but us hands over",
    ),
    Seam("sglang.srt.speculative.eagle_info:EagleDraftInput", None, "call", "to go on without the draft's output"),
)


def obstacle(scheduler: Any) -> str:
    """Why the draft's cache can't be left alone on this server, as a clause; "" if it can."""
    args, draft_worker = scheduler.server_args, scheduler.draft_worker.draft_worker
    for name, wanted, why in (
        ("disaggregation_mode", "null", "prefill and decode are separate servers"),
        ("enable_hierarchical_cache", False, "the hierarchical cache brings KV back that nobody noted"),
        ("speculative_use_rejection_sampling", False, "drafts are verified against the draft's own probabilities"),
    ):
        if getattr(args, name, wanted) not in (wanted, None):
            return why
    if getattr(draft_worker, "seed_dsa_topk_from_draft_extend", False):
        return "the draft hands indices of sparse attention on"
    return ""


class Upkeep:
    """What the draft's cache has, what it lacks, and where that is kept.

    Attributes:
        coverage, inputs, catch_up, reserve: see their classes.
        costs: what returns cost, by the profile and by those seen since.
        returns: how often a batch was caught up without the target's help.
        failures: catch-ups that raised; each is a bug of ours.
        available: whether the draft can run now; False while it is parked for long, or away. The state machine of the
            draft's residency sets it. While it is False nothing is caught up and γ is 0.
        keeps_all: what the draft reads is kept while it works, too; for a draft whose cache may be given back (`lost`).
    """

    def __init__(self, scheduler: Any, selector: GammaSelector, journal_bytes: int, costs: SwitchCosts | None = None):
        """For a scheduler with an ``EAGLEWorkerV2`` or ``StandaloneWorkerV2``; ``costs`` are what was profiled."""
        from sglang.srt.speculative import eagle_utils

        worker = scheduler.draft_worker
        draft_worker = worker.draft_worker
        runner = draft_worker.draft_runner
        pool, rows = runner.token_to_kv_pool, draft_worker.req_to_token_pool.req_to_token.shape[0]
        # The target's cache may have more slots than the draft's: those that exist while the draft is away.
        slots = max(pool.size, worker.target_worker.model_runner.token_to_kv_pool.size) + pool.page_size
        self.available = True
        self.keeps_all = False
        self.failures = self.returns = 0
        self._recent: deque[tuple[int, int]] = deque(maxlen=_RECENT)
        self.coverage = Coverage(slots, rows, worker.device)
        self.inputs = inputs.of(worker, slots, journal_bytes)
        if torch.device(worker.device).type == "cuda" or scheduler.ps.tp_size > 1:
            # Now, because in the middle of a forward pass nobody expects memory to be missing; and on all ranks alike,
            # because what was kept decides about shapes.
            self.inputs.reserve(agreement.of(scheduler))
        self.catch_up = CatchUp(worker, self.coverage, self.inputs)
        self.costs = costs or SwitchCosts()
        self._told = self.costs.cost(*_TYPICAL)
        self.reserve = Reserve(selector, scheduler.enable_overlap)
        self._selector = selector
        self._scheduler = scheduler
        self._topk = worker.topk
        self._state_width, self._state_dtype = eagle_utils.get_draft_recurrent_hidden_state_spec(runner)
        self._nothing: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def before_decode(self, batch: Any) -> None:
        """Before a decode batch is launched: make it ready for drafts if it is to have some, or hold γ at 0."""
        wanted = self._selector.decision.gamma_for(max(1, len(batch.reqs)))
        self._selector.held = wanted > 0 and (self.reserve.gamma < wanted or not self._ready(batch, wanted))

    @property
    def trims(self) -> bool:
        """The decision in force lets drafts go unverified that don't pay."""
        return self._selector.decision.trim

    def measure_passes(self) -> None:
        """Find out what `trims` needs to know. Call it between iterations: within one, all that run would wait."""
        worker = self._scheduler.draft_worker.draft_worker
        if worker.device == "cpu":
            from sglang_nightjar.cpu import eagle3_draft

            if (draft := eagle3_draft.draft_of(worker)) is not None:
                draft.measure()

    def settle_reserve(self, batch: Any, fits: Callable[[], bool]) -> bool:
        """Before a decode batch gets its slots: whether there are enough, which ``fits`` says for `Reserve.gamma`."""
        return self.reserve.settle(len(batch.reqs), self.available, fits)

    def extend_after_prefill(
        self,
        original: Callable[..., Any],
        batch: Any,
        hidden: torch.Tensor | None,
        next_tokens: torch.Tensor,
        must_read: bool,
    ) -> Any:
        """In the place of ``EagleDraftWorker._draft_extend_for_prefill``; returns its ``EagleDraftInput``.

        With ``must_read`` the draft reads the prompt whatever γ is: what it reads can't be kept.
        """
        rows, coverage = batch.req_pool_indices_cpu.tolist(), self.coverage
        table = batch.req_to_token_pool.req_to_token
        behind = coverage.stale_runs([table[row, :n] for row, n in zip(rows, batch.prefix_lens, strict=True)])
        # A draft's row depends on those before it, so a prompt behind stale slots waits for them.
        if self.available and (must_read or (self._wants_drafts(len(rows)) and not any(behind))):
            coverage.wrote(batch.out_cache_loc)
            if self.keeps_all:
                self.inputs.note_prompt(batch, hidden, next_tokens)
            for row, first, stale in zip(rows, batch.prefix_lens, behind, strict=True):
                coverage.start(row, first, 0, stale)
            return original(batch, hidden, next_tokens)
        self.inputs.note_prompt(batch, hidden, next_tokens)
        coverage.skipped(batch.out_cache_loc)
        for row, first, length, stale in zip(rows, batch.prefix_lens, batch.extend_lens, behind, strict=True):
            coverage.start(row, first, length, stale)
        return self._no_draft(next_tokens)

    def extend_after_decode(self, original: Callable[..., Any], batch: Any, result: Any, steps: int) -> None:
        """In the place of ``EagleDraftWorker._draft_extend_for_decode``, which completes ``result``."""
        if steps:
            self.coverage.wrote(batch.out_cache_loc)
            if self.keeps_all:
                self._note_verified(batch.out_cache_loc, result, steps)
            original(batch, result)
            return
        self._hand_over_read_done()
        slots = batch.out_cache_loc
        self.inputs.note(slots, result.logits_output.hidden_states, result.next_token_ids)
        self.coverage.skipped(slots)
        self.coverage.lag[batch.req_pool_indices_cpu.numpy()] += 1
        stub, following = self._no_draft(result.next_token_ids), result.next_draft_input
        following.topk_p, following.topk_index, following.hidden_states = (
            stub.topk_p,
            stub.topk_index,
            stub.hidden_states,
        )

    def lost(self, requests: Iterable[Any]) -> None:
        """The draft's cache was given back with all that was in it; ``requests`` are all that are in work."""
        self.coverage.lost({req.req_pool_idx: req.kv_committed_len for req in requests if req.req_pool_idx is not None})

    def has_news(self) -> bool:
        """Whether `costs` says something else than when this was last True; called by the agent's thread."""
        now = self.costs.cost(*_TYPICAL)
        if abs(now - self._told) <= _NEWS * max(now, self._told):
            return False
        self._told = now
        return True

    def lag(self) -> tuple[int, int]:
        """Positions that the draft's cache lacks of running requests: of the worst one, of all."""
        if not self.coverage.used:
            return 0, 0
        rows = [req.req_pool_idx for req in self._scheduler.running_batch.reqs if req.req_pool_idx is not None]
        return self.coverage.lags(np.array(rows, dtype=np.int64))

    def status(self) -> dict[str, Any]:
        """For ``GET /nightjar/status``: plain JSON types."""
        fixed, slope = self.costs.line()
        return {
            "lag_max": self.lag()[0],
            "reads": self.inputs.reads,
            "journal": self.inputs.status(),
            "catch_up": {
                "pieces": self.catch_up.steps,
                "tokens": self.catch_up.tokens,
                "recomputed": self.catch_up.recomputed,
                "too_dear": self.catch_up.too_dear,
                "failures": self.failures,
                "returns": self.returns,
                "recent": [list(entry) for entry in self._recent.copy()],
                "fixed_us": round(fixed / 1e3, 1),
                "us_per_token": round(slope / 1e3, 3),
            },
            "without_slots": self.reserve.refused,
        }

    def _note_verified(self, slots: torch.Tensor, result: Any, steps: int) -> None:
        """Keep what the draft is about to read at ``slots``, int64 ``[requests * (steps + 1)]``, of a verification."""
        hidden, tokens = result.logits_output.hidden_states, result.next_token_ids
        if slots.device.type == "cpu" and hidden is not None:
            # Nobody needs those of rejected drafts. On a GPU, where finding them would wait for it, they take up room.
            is_text = (torch.arange(steps + 1) < result.accept_lens[:, None]).flatten()
            slots, hidden, tokens = slots[is_text], hidden[is_text], tokens[is_text]
        self.inputs.note(slots, hidden, tokens)

    def _hand_over_read_done(self) -> None:
        """Under overlap SGLang waits for the draft to have read the shared buffers; at γ=0 the target is the last."""
        worker = self._scheduler.draft_worker
        target, draft = worker.target_worker.model_runner, worker.draft_worker.draft_runner
        draft.war_fastpath_read_done_event, target.war_fastpath_read_done_event = (
            target.war_fastpath_read_done_event,
            None,
        )

    def slots_changed(self, row: int) -> None:
        """The request in ``row`` was given slots of the radix cache for its own."""
        if self.coverage.used:
            self.coverage.uncertain[row] = True

    def _ready(self, batch: Any, gamma: int) -> bool:
        if not self.available:
            return False
        try:
            if not self.catch_up.can_pay(batch, gamma):
                return False
            is_ready = self.catch_up.step(batch)
            for positions, ns in self.catch_up.watch.finished():
                self.costs.observe(positions, ns)
                self.returns += 1
                self._recent.append((positions, round(ns / 1e3)))
            return is_ready
        except Exception as error:
            if self._scheduler.ps.tp_size > 1:
                # The others go on with drafts and would wait for this rank; an end that is seen is better than that.
                raise
            # Without drafts the requests are served all the same.
            self.failures += 1
            rate_limited.warning("Nightjar: catching the draft up failed, γ stays 0: %r", error)
            logger.debug("Nightjar: catching up failed", exc_info=True)
            return False

    def _wants_drafts(self, joining: int) -> bool:
        return (
            self.available
            and self._selector.decision.gamma_for(max(1, len(self._scheduler.running_batch.reqs) + joining)) > 0
        )

    def _no_draft(self, bonus_tokens: torch.Tensor) -> Any:
        """An ``EagleDraftInput`` of the right shapes from which nothing is ever drafted."""
        from sglang.srt.speculative.eagle_info import EagleDraftInput

        size = len(bonus_tokens)
        if self._nothing is None or len(self._nothing[0]) < size:
            device, room = bonus_tokens.device, 2 * size
            self._nothing = (
                torch.zeros(room, self._topk, device=device),
                torch.zeros(room, self._topk, dtype=torch.int64, device=device),
                # A STANDALONE draft has no state beside its cache.
                torch.zeros(room, self._state_width or 0, dtype=self._state_dtype, device=device),
            )
        topk_p, topk_index, hidden = (tensor[:size] for tensor in self._nothing)
        return EagleDraftInput(
            topk_p=topk_p,
            topk_index=topk_index,
            hidden_states=None if self._state_width is None else hidden,
            bonus_tokens=bonus_tokens,
            num_tokens_per_req=1,
            num_tokens_for_logprob_per_req=1,
        )


#: The upkeep of this process, if it is a scheduler whose γ is Nightjar's to choose.
current: Upkeep | None = None
