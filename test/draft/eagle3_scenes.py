"""The same batches through both of the draft's paths: SGLang's ModelRunner, and cpu/eagle3_draft.py."""

from itertools import cycle
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from helpers.one_scheduler import OneScheduler

PROMPTS = [list(range(100 + 7 * i, 140 + 9 * i)) for i in range(6)]


def all_scenes(target: str, draft: str) -> dict[str, Any]:
    one = OneScheduler(target, draft, chunked_prefill_size=64)
    return {"compared": both_paths(one), "trimmed": trimmed(one), "runs": without(one)}


def trimmed(one: OneScheduler) -> dict[str, Any]:
    """Greedy requests beside sampled ones, as they come and go: all drafts verified, and only those that pay where each
    row is dear. Greedy texts; how many rows there were and how many were left; and where some were left out, how many
    drafts were accepted, and would have been."""
    from sglang_nightjar.cpu import trim

    rows, told, ended, keep, tell = [], [], [], trim.keep, trim.tell

    def dear(chances: torch.Tensor, times: trim.PassTimes) -> trim.Kept | None:
        kept = keep(chances, times)
        ended.append(int((chances == 0).sum()))
        every = chances.shape[0] * (chances.shape[1] + 1)
        rows.append((every, every if kept is None else len(kept.rows)))
        return kept

    def overheard(result: Any, kept: trim.Kept) -> None:
        tell(result, kept)
        told.append((int(result.accept_lens.sum()) - len(kept.lengths), sum(trim.told(result).likely)))

    worker = one.scheduler.draft_worker.draft_worker
    ours = worker.nightjar_eagle3
    ours.measure()
    measured = ours.times
    ours.times = SimpleNamespace(
        ns=lambda first, last: np.arange(first, last + 1) + 4.0, note=lambda ns, rows: None, least_chance=0.0
    )
    trim.keep, trim.tell, texts = dear, overheard, {}
    for one.trim in (False, True):
        one.forget()
        for index, ids in enumerate(PROMPTS):
            one.add(f"{one.trim}{index}", ids, 20 + 5 * index, temperature=0.8 if index % 3 == 2 else 0)
        one.run(cycle([3, 3, 1, 5, 0, 0, 2]))
        texts[one.trim] = [one.output(f"{one.trim}{index}") for index in range(len(PROMPTS)) if index % 3 != 2]
    trim.keep, trim.tell, one.trim = keep, tell, False
    ours.times = measured
    every, left = (sum(column) for column in zip(*rows, strict=True))
    accepted, likely = (sum(column) for column in zip(*told, strict=True))
    return {"texts": texts, "rows": every, "left": left, "measured": measured.ns(1, 100).tolist()} | {
        "verifications cut short": len(told), "accepted": accepted, "likely": likely, "never made": sum(ended),
    }  # fmt: skip


def both_paths(one: OneScheduler) -> dict[str, Any]:
    """Greedy requests and requests with a temperature, of several lengths, at changing γ; prompts in chunks, and behind
    a prefix that the radix cache has.

    Returns how many prompts, chains, next drafts and states of each path were compared, and which of them differed.
    """
    import sglang.srt.speculative.eagle_worker_v2 as eagle

    from sglang_nightjar.cpu import eagle3_draft
    from sglang_nightjar.draft.catch_up import Pace
    from sglang_nightjar.draft.extend import through_model_runner

    counted = ("prompts", "chunks", "prefixes", "caught up", "first drafts", "chains", "extends", "rejected")
    seen: dict[str, Any] = dict.fromkeys(counted, 0) | {"different": []}
    ours_of, worker = eagle3_draft.of, one.scheduler.draft_worker.draft_worker
    names = ("draft", "_draft_extend_for_decode", "_draft_extend_for_prefill")
    sglangs = {name: _unhooked(getattr(eagle.EagleDraftWorker, name)) for name in names}

    class Both:
        """Does what it does twice, and goes on with SGLang's results."""

        def __init__(self, ours: eagle3_draft.Eagle3Draft):
            self.ours = ours

        def read_prompts(self, batch: Any, hidden: torch.Tensor, next_tokens: torch.Tensor) -> Any:
            found = []
            for self.ours.needs_last_alone in (False, True):
                _at(worker, batch.out_cache_loc, fill=7.0)
                ours = self.ours.read_prompts(batch, hidden, next_tokens)
                found.append((ours, _at(worker, batch.out_cache_loc)))
            theirs = sglangs["_draft_extend_for_prefill"](worker, batch, hidden, next_tokens)
            seen["prompts"] += len(batch.reqs)
            seen["chunks"] += sum(req.inflight_middle_chunks > 0 for req in batch.reqs)
            seen["prefixes"] += sum(first > 0 for first in batch.prefix_lens)
            for ours, kept in found:
                _compare(seen, "cache of prompts", kept, _at(worker, batch.out_cache_loc))
                # SGLang's topk_p are probabilities here and ones after decoding; with one candidate nobody reads them.
                for name in ("topk_index", "hidden_states", "bonus_tokens"):
                    _compare(seen, name, getattr(ours, name), getattr(theirs, name))
            return theirs

        def read(self, batch: Any, tokens: torch.Tensor, hidden: torch.Tensor, drafts: bool) -> Any:
            found = []
            for self.ours.needs_last_alone in (False, True):
                _at(worker, batch.out_cache_loc, fill=7.0)
                ours = self.ours.read(batch, tokens, hidden, drafts)
                found.append((ours, _at(worker, batch.out_cache_loc)))
            theirs = through_model_runner(worker, batch, drafts)
            seen["caught up"] += len(batch.reqs)
            seen["first drafts"] += len(batch.reqs) if drafts else 0
            for ours, kept in found:
                _compare(seen, "cache of what was missed", kept, _at(worker, batch.out_cache_loc))
                for name in ("drafts", "states") if drafts else ():
                    _compare(seen, name, getattr(ours, name), getattr(theirs, name))
            return theirs

        def verify_input(self, batch: Any) -> Any:
            ours = self.ours.verify_input(batch)
            theirs = sglangs["draft"](worker, batch)
            seen["chains"] += len(batch.reqs)
            _compare(seen, "chain", ours.draft_token, theirs.draft_token)
            _compare(seen, "positions", ours.positions, theirs.positions)
            return theirs

        def read_accepted(self, batch: Any, result: Any) -> None:
            ours = SimpleNamespace(**vars(result))
            ours.next_draft_input = SimpleNamespace()
            self.ours.read_accepted(batch, ours)
            # By then the cache of accepted positions is ours; SGLang writes it anew, and the rejected ones' too.
            kept = _written(worker, batch, result)
            sglangs["_draft_extend_for_decode"](worker, batch, result)
            _compare(seen, "cache", kept, _written(worker, batch, result))
            seen["extends"] += len(batch.reqs)
            seen["rejected"] += int((worker.speculative_num_draft_tokens - result.accept_lens).sum())
            for name in ("topk_index", "hidden_states"):
                _compare(seen, name, getattr(ours.next_draft_input, name), getattr(result.next_draft_input, name))

    def both(worker: Any, batch: Any) -> Any:
        found = ours_of(worker, batch)
        return None if found is None else Both(found)

    eagle3_draft.of = both
    for index, ids in enumerate(PROMPTS):
        one.add(f"r{index}", ids, 14 + 3 * index, temperature=0 if index % 2 else 0.9)
    # What was missed is filled in several pieces, and with the last of them the next drafts.
    one.upkeep.catch_up.pace = Pace(8)
    one.run(cycle([3, 3, 1, 5, 0, 2, 0, 0, 0, 0, 0, 0]))
    for index, ids in enumerate(PROMPTS):
        one.add(f"again{index}", [*ids, 7, 8, 9][: len(ids) + index - 2], 4, temperature=0 if index % 2 else 0.9)
    one.run(cycle([2]))
    eagle3_draft.of = ours_of
    return seen


def _unhooked(function: Any) -> Any:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def _written(worker: Any, batch: Any, result: Any) -> torch.Tensor:
    """The draft's keys and values of the accepted positions."""
    width = worker.speculative_num_draft_tokens
    slots = batch.out_cache_loc.view(-1, width)[torch.arange(width) < result.accept_lens[:, None]]
    return _at(worker, slots)


def _at(worker: Any, slots: torch.Tensor, fill: float | None = None) -> torch.Tensor:
    """The draft's keys and values at ``slots``; before that all of them become ``fill``."""
    pool = worker.draft_runner.token_to_kv_pool
    if fill is not None:
        pool.k_buffer[0][slots] = pool.v_buffer[0][slots] = fill
    return torch.stack([pool.k_buffer[0][slots], pool.v_buffer[0][slots]])


def _compare(seen: dict[str, Any], name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
        seen["different"].append((name, ours.flatten()[:8].tolist(), theirs.flatten()[:8].tolist()))


def without(one: OneScheduler) -> dict[str, Any]:
    """What the draft's ModelRunner does in a run of ours, and who serves when the draft does not fit."""
    from sglang.srt.model_executor.model_runner import ModelRunner

    from sglang_nightjar.cpu import eagle3_draft

    modes: list[str] = []
    forward = ModelRunner.forward

    def counted(runner: Any, forward_batch: Any, *rest: Any, **named: Any) -> Any:
        if runner.is_draft_worker:
            modes.append(forward_batch.forward_mode.name)
        return forward(runner, forward_batch, *rest, **named)

    ModelRunner.forward = counted
    answers = []
    for fits in (True, False):
        worker = one.scheduler.draft_worker.draft_worker
        if not fits:
            worker.nightjar_eagle3 = None
        modes.clear()
        one.forget()
        for index, ids in enumerate(PROMPTS):
            one.add(f"{fits}{index}", ids, 16)
        one.run(cycle([3]))
        lengths = [one.verified[f"{fits}{index}"] for index in range(len(PROMPTS))]
        texts = [one.output(f"{fits}{index}") for index in range(len(PROMPTS))]
        answers.append({"modes": sorted(set(modes)), "texts": texts, "accepted": lengths})
    worker = one.scheduler.draft_worker.draft_worker
    reasons = {"as it is": eagle3_draft.why_not(worker)}
    for name, owner, attribute, value in (
        ("tree", worker, "topk", 4),
        ("fp32 head", worker.draft_runner.model.logits_processor, "use_fp32_lm_head", True),
        ("dp attention", worker.server_args, "enable_dp_attention", True),
    ):
        kept = getattr(owner, attribute)
        object.__setattr__(owner, attribute, value)
        reasons[name] = eagle3_draft.why_not(worker)
        object.__setattr__(owner, attribute, kept)
    return {"ours": answers[0], "sglangs": answers[1], "reasons": reasons}
