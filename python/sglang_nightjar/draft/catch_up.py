"""Coming back: the draft's cache is filled for the positions that running requests gained without it.

It happens in front of a decode iteration that wants drafts, in pieces of bounded size, the longest-running request
first; as long as something is missing the iteration decodes without drafts. Last comes the newest position of every
request, in one pass for all: it leaves the state from which the next draft starts, exactly as after a prefill.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sglang_nightjar.draft.coverage import Coverage
from sglang_nightjar.draft.extend import FirstDrafts, Piece, draft_extend, slots_of
from sglang_nightjar.draft.inputs import DraftInputs
from sglang_nightjar.draft.stopwatch import Stopwatch

#: A draft is small if its layers have at most this part of the target's numbers, as an EAGLE head's have.
SMALL_DRAFT = 0.1


@dataclass(frozen=True)
class Pace:
    """What an iteration does of a return: a fraction of a decode step.

    Constants and not measured, because all ranks of a TP group must do the same.

    Attributes:
        tokens: positions that it fills of what was kept.
        tokens_per_request: at least so many for each request: every iteration that has to wait adds a position to each.
        recompute_weight: how many positions computing one anew by the target counts for.
    """

    tokens: int
    tokens_per_request: int = 4
    recompute_weight: int = 8

    @property
    def recomputed(self) -> int:
        """Positions that it can fill where nothing was kept."""
        return max(1, self.tokens // self.recompute_weight)


ON_GPU, ON_CPU = Pace(256), Pace(32)
#: Where keys and values are all that the draft computes of a position, a third of its layer and no attention.
KEYS_AND_VALUES = Pace(128, recompute_weight=32)
#: With a draft that is not small a position costs more, and an iteration fills fewer, for each request down to this.
_TOKENS_PER_REQUEST_OF_A_LARGE_DRAFT = 2


class CatchUp:
    """Fills what is missing, for the requests of one batch at a time.

    Attributes:
        pace: how much of it an iteration does.
        steps, tokens: pieces of work, and positions filled; since the start.
        too_dear: iterations without drafts because coming back could not pay.
        watch: how long it takes to make a batch ready, without the target's help.
    """

    def __init__(self, worker: Any, coverage: Coverage, inputs: DraftInputs, pace: Pace | None = None):
        self.steps = self.tokens = self.too_dear = 0
        self.watch = Stopwatch(worker.device)
        self.pace = pace or _affordable(worker)
        self._worker = worker
        self._coverage = coverage
        self._inputs = inputs

    @property
    def recomputed(self) -> int:
        """Positions that needed the target once more, because what the draft reads there was not kept."""
        return self._inputs.recomputed

    def missing(self, batch: Any) -> dict[int, list[tuple[int, int]]]:
        """By index in the batch, the runs of positions that the draft has to write; only requests that have some."""
        coverage = self._coverage
        rows = batch.req_pool_indices_cpu.numpy()
        if not coverage.used or not (coverage.lag[rows].any() or coverage.uncertain[rows].any() or coverage.holes):
            return {}
        lengths = (batch.seq_lens_cpu if batch.seq_lens_cpu is not None else batch.seq_lens.cpu()).tolist()
        for index in coverage.uncertain[rows].nonzero()[0]:
            coverage.recount(int(rows[index]), slots_of(batch, Piece(int(index), 0, lengths[index])))
        found = {index: coverage.missing(int(row), lengths[index]) for index, row in enumerate(rows)}
        return {index: runs for index, runs in found.items() if runs}

    def can_pay(self, batch: Any, gamma: int) -> bool:
        """False if making ``batch`` ready for ``gamma`` drafts is sure to cost more than these can save.

        What was kept takes iterations; whoever ends before them has no drafts. What was not kept is computed in pieces,
        each a pass of the target, about as dear as a decode step. At best all drafts are accepted until the last
        request ends, which saves ``gamma`` steps of ``gamma + 1``. Counted and not timed, because all ranks of a TP
        group must find the same.
        """
        missing = self.missing(batch)
        if not missing:
            return True
        spans = [slots_of(batch, Piece(index, *run)) for index, runs in missing.items() for run in runs]
        kept = self._inputs.kept(torch.unique(torch.cat(spans)))
        held = int(kept.sum())
        # Meanwhile every request gains a position in each.
        iterations = held // max(1, self._budget(batch) - len(batch.reqs))
        passes = -(-(len(kept) - held) // self.pace.recomputed)
        left = max(req.sampling_params.max_new_tokens - len(req.output_ids) for req in batch.reqs)
        pays = iterations + passes < left and passes < left * gamma / (gamma + 1)
        self.too_dear += not pays
        return pays

    def _budget(self, batch: Any) -> int:
        """Positions that an iteration of ``batch`` may fill."""
        return max(self.pace.tokens, self.pace.tokens_per_request * len(batch.reqs))

    def step(self, batch: Any) -> bool:
        """One bounded piece of work for the requests of ``batch``, before it decodes; True if nothing is missing."""
        missing = self.missing(batch)
        if not missing:
            return True
        self.steps += 1
        before, recomputed = self.tokens, self.recomputed
        self.watch.start()
        budget = self._budget(batch)
        lengths = (batch.seq_lens_cpu if batch.seq_lens_cpu is not None else batch.seq_lens.cpu()).tolist()
        while missing and budget > 0:
            fits = sum(last - first for runs in missing.values() for first, last in runs) <= budget
            now = missing if fits else _without_newest(missing, lengths)
            if not now:
                break
            pieces, budget = self._choose(batch, now, budget)
            if pieces:
                self._fill(batch, pieces, lengths)
            missing = self.missing(batch)
        self.watch.stop(self.tokens - before, ends=not missing, counts=self.recomputed == recomputed)
        return not missing

    def _choose(self, batch: Any, missing: dict[int, list[tuple[int, int]]], budget: int) -> tuple[list[Piece], int]:
        """The next piece of each request, in their order in the batch, for at most ``budget``; and what is left of it.

        A piece was all kept, or all not. Slots that requests share are filled for the first of them; the others are
        looked up again.
        """
        candidates = [Piece(index, first, min(last, first + budget)) for index, ((first, last), *_) in missing.items()]
        slots = torch.cat([slots_of(batch, piece) for piece in candidates])
        kept = self._inputs.kept(slots).numpy()
        ids, stale = torch.stack((slots, self._coverage.stale[slots].to(torch.int64))).cpu().numpy()
        chosen: list[Piece] = []
        taken: list[np.ndarray] = []
        end = 0
        for piece in candidates:
            if budget <= 0:
                break
            part = slice(end, end + len(piece))
            end = part.stop
            wanted = (stale[part] != 0) & (kept[part] == kept[part.start])
            if taken:
                wanted &= ~np.isin(ids[part], np.concatenate(taken))
            if not wanted[0]:
                self._coverage.uncertain[int(batch.req_pool_indices_cpu[piece.index])] = True
                continue
            weight = 1 if kept[part.start] else self.pace.recompute_weight
            length = min(int(np.argmin([*wanted, False])), max(1, budget // weight))
            chosen.append(Piece(piece.index, piece.first, piece.first + length))
            taken.append(ids[part.start : part.start + length])
            budget -= length * weight
        return chosen, budget

    def _fill(self, batch: Any, pieces: list[Piece], lengths: list[int]) -> None:
        """Run the draft over ``pieces``; where a request is complete then, its next draft starts from there."""
        slots = torch.cat([slots_of(batch, piece) for piece in pieces])
        hidden, tokens = self._inputs.read(batch, pieces, slots)
        ended = [number for number, piece in enumerate(pieces) if piece.last == lengths[piece.index]]
        first = draft_extend(self._worker.draft_worker, batch, pieces, slots, hidden, tokens, drafts=bool(ended))
        self._coverage.wrote(slots)
        rows = batch.req_pool_indices_cpu
        for piece in pieces:
            self._coverage.filled(int(rows[piece.index]), (piece.first, piece.last), lengths[piece.index])
        self.tokens += len(slots)
        if first is not None:
            _start_drafting_from(batch.spec_info, [pieces[number].index for number in ended], ended, first)


def _without_newest(missing: dict[int, list[tuple[int, int]]], lengths: list[int]) -> dict[int, list[tuple[int, int]]]:
    """``missing`` without the last position of each request.

    A request that is complete while others are not gains a position in every iteration that waits for them, and only
    what the draft says at its newest one counts: to ask each time would read the draft's head, which may be most of it.
    """
    rest = {
        index: [(first, min(last, lengths[index] - 1)) for first, last in runs if first < lengths[index] - 1]
        for index, runs in missing.items()
    }
    return {index: runs for index, runs in rest.items() if runs}


def _affordable(worker: Any) -> Pace:
    """The pace of this draft; the same on all ranks."""
    usual = _usual(worker)
    target, draft = worker.target_worker.model_runner.model, worker.draft_worker.draft_runner.model
    share = _layer_values(draft) / max(1, _layer_values(target))
    if share <= SMALL_DRAFT:
        return usual
    tokens = max(1, int(usual.tokens * SMALL_DRAFT / share))
    return replace(usual, tokens=tokens, tokens_per_request=_TOKENS_PER_REQUEST_OF_A_LARGE_DRAFT)


def _usual(worker: Any) -> Pace:
    """That of a small draft which computes what this one does of a position."""
    if worker.device != "cpu":
        return ON_GPU
    from sglang_nightjar.cpu import eagle3_draft

    ours = eagle3_draft.draft_of(worker.draft_worker)
    return KEYS_AND_VALUES if ours is not None and ours.needs_last_alone else ON_CPU


def _layer_values(model: torch.nn.Module) -> int:
    """How many numbers a position is multiplied with; the head computes a piece's last position only."""
    named = model.named_parameters()
    return sum(value.numel() for name, value in named if "embed_tokens" not in name and "lm_head" not in name)


def _start_drafting_from(draft_input: Any, indices: list[int], ended: list[int], first: FirstDrafts) -> None:
    """Set what the next chain of the requests ``indices`` starts from; ``ended`` are their rows of ``first``."""
    from_rows = torch.tensor(ended, device=draft_input.topk_index.device)
    to_rows = torch.tensor(indices, device=draft_input.topk_index.device)
    drafts = first.drafts[from_rows]
    draft_input.topk_index = draft_input.topk_index.index_copy(0, to_rows, drafts.to(draft_input.topk_index.dtype))
    chances = first.chances[from_rows].to(draft_input.topk_p.dtype)
    draft_input.topk_p = draft_input.topk_p.index_copy(0, to_rows, chances)
    if first.states is not None:
        states = first.states[from_rows].to(draft_input.hidden_states.dtype)
        draft_input.hidden_states = draft_input.hidden_states.index_copy(0, to_rows, states)
