"""One telemetry record per decode iteration, out of what the scheduler has at hand. No device is waited for."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from sglang_nightjar.agent.selector import Launch
from sglang_nightjar.core.messages import Telemetry
from sglang_nightjar.patches.seams import Seam

_SCHEDULER = "sglang.srt.managers.scheduler:Scheduler"
_BATCH = "sglang.srt.managers.schedule_batch:ScheduleBatch"
_RESULT = "sglang.srt.managers.utils:GenerationBatchResult"

SEAMS = (
    *(
        Seam(f"{_RESULT}.{name}", None, "field", "telemetry")
        for name in ("speculative_num_draft_tokens", "num_correct_drafts_per_req_cpu", "can_run_cuda_graph")
    ),
    *(Seam(f"{_BATCH}.{name}", None, "field", "telemetry") for name in ("reqs", "launch_ts", "extend_num_tokens")),
    Seam(
        "sglang.srt.managers.scheduler_components.pool_stats_observer:SchedulerPoolStatsObserver.get_pool_stats",
        (),
        "call",
        "KV use",
    ),
)

#: A batch launched so long after the last result found an idle scheduler: its iteration starts with its launch.
_IDLE_NS = 20_000_000

#: The waiting requests' tokens are counted at most so often, and over at most so many requests.
_QUEUE_PERIOD_NS = 50_000_000
_QUEUE_COUNTED = 256


@dataclass
class Totals:
    """What happened since the start.

    Attributes:
        iterations: decode iterations.
        time_ns_by_gamma: their duration.
        verified: requests in decode iterations, summed; each gained one token besides the accepted ones.
        proposed, accepted: draft tokens.
        retractions: requests retracted.
    """

    iterations: int = 0
    time_ns_by_gamma: dict[int, int] = field(default_factory=dict)
    verified: int = 0
    proposed: int = 0
    accepted: int = 0
    retractions: int = 0


class Collector:
    """Makes the records.

    Attributes:
        totals: see `Totals`.
        last: the newest record; None before the first.
    """

    def __init__(self, scheduler: Any, launches: deque[Launch]):
        self.totals = Totals()
        self.last: Telemetry | None = None
        self._scheduler = scheduler
        self._launches = launches
        self._result_ns = 0
        self._since_ns = 0
        self._prefill_tokens = 0
        self._queued_tokens = 0
        self._queue_counted_ns = 0

    def note_prefill(self, batch: Any) -> None:
        """A prefill's result was processed."""
        now = time.monotonic_ns()
        self._note_start(batch)
        self._prefill_tokens += batch.extend_num_tokens or 0
        self._result_ns = now

    def record(self, batch: Any, result: Any) -> Telemetry:
        """The record of a decode iteration whose result was just processed."""
        now = time.monotonic_ns()
        self._note_start(batch)
        scheduler, reqs = self._scheduler, batch.reqs
        batch_size = len(reqs)
        gamma = (result.speculative_num_draft_tokens or 1) - 1
        plan_id = self._launches.popleft().plan_id if self._launches else 0
        correct = result.num_correct_drafts_per_req_cpu or ()
        accepted = accepted_by_position(correct, gamma)
        iteration_ns = now - self._since_ns
        pool = scheduler.pool_stats_observer.get_pool_stats()
        queue = scheduler.waiting_queue
        totals = self.totals
        totals.iterations += 1
        totals.time_ns_by_gamma[gamma] = totals.time_ns_by_gamma.get(gamma, 0) + iteration_ns
        totals.verified += batch_size
        totals.proposed += gamma * batch_size
        committed_drafts = sum(accepted)
        totals.accepted += committed_drafts
        made = self.last = Telemetry(
            totals.iterations,
            now,
            iteration_ns,
            batch_size,
            gamma,
            batch_size + committed_drafts,
            sum([req.kv_committed_len for req in reqs]),
            self._prefill_tokens,
            len(queue) + len(scheduler.grammar_manager.grammar_queue),
            self._queued(queue, now) if queue else 0,
            len(scheduler.running_batch.reqs),
            max(0, pool.full_num_used),
            scheduler.max_total_num_tokens,
            totals.retractions,
            0,
            0,
            0,
            1 if result.can_run_cuda_graph else 0,
            plan_id,
            accepted,
        )
        self._prefill_tokens = 0
        self._result_ns = self._since_ns = now
        return made

    def _note_start(self, batch: Any) -> None:
        launched_ns = int(batch.launch_ts * 1e9)
        if launched_ns - self._result_ns > _IDLE_NS:
            self._since_ns = launched_ns

    def _queued(self, queue: list[Any], now: int) -> int:
        """Prompt tokens of the waiting requests; of a long queue, an estimate from its head."""
        if now - self._queue_counted_ns > _QUEUE_PERIOD_NS:
            self._queue_counted_ns = now
            head = queue[:_QUEUE_COUNTED]
            self._queued_tokens = sum([len(req.origin_input_ids) for req in head]) * len(queue) // len(head)
        return self._queued_tokens


def accepted_by_position(correct: list[int] | tuple[int, ...], gamma: int) -> tuple[int, ...]:
    """At position i how many requests had their i-th draft token accepted, from each request's number of them."""
    if gamma == 0 or not correct:
        return ()
    counts = [0] * (gamma + 1)
    for number in correct:
        counts[number] += 1
    # A request with k accepted tokens had the first k positions accepted: sum up from the far end.
    for position in range(gamma - 1, 0, -1):
        counts[position] += counts[position + 1]
    return tuple(counts[1:])
