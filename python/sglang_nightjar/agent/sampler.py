"""What the scheduler's thread notes of each batch: plain values, so that another thread can do the rest."""

import time
from collections import deque
from typing import Any, NamedTuple

from sglang_nightjar.agent.selector import Launch
from sglang_nightjar.cpu import trim
from sglang_nightjar.cpu.trim import Told
from sglang_nightjar.draft import residency
from sglang_nightjar.patches.seams import Seam

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
        "KV use of hybrid pools",
    ),
    Seam("sglang.srt.mem_cache.allocator.token:TokenToKVPoolAllocator.available_size", (), "call", "KV use"),
    Seam("sglang.srt.mem_cache.radix_cache:RadixCache.evictable_size", (), "call", "KV use"),
)

#: The waiting requests' tokens are counted at most so often, and over at most so many requests.
_QUEUE_PERIOD_NS = 50_000_000
_QUEUE_COUNTED = 256


class PrefillSample(NamedTuple):
    """A prefill whose result was processed at ``at_ns``; launched at ``launched_s`` of the same clock.

    Attributes:
        after_idle: the scheduler had nothing to run before it.
    """

    at_ns: int
    launched_s: float
    tokens: int
    after_idle: bool = False


class DecodeSample(NamedTuple):
    """A decode iteration, as `core.messages.Telemetry` has it, before anything is derived.

    Attributes:
        width: tokens verified per request, γ + 1; None without speculation.
        correct: accepted draft tokens of each request.
        told: of a verification that was cut short, what it says; None of others.
        overhead_ns: what the agent cost the scheduler's thread in the iteration before.
        after_idle: the scheduler had nothing to run before it.
        residency, lag_max, lag_total: as in `Telemetry`.
    """

    at_ns: int
    launched_s: float
    batch_size: int
    width: int | None
    correct: list[int] | None
    launch: Launch | None
    cuda_graph: bool
    overhead_ns: int
    after_idle: bool = False
    residency: int = 0
    lag_max: int = 0
    lag_total: int = 0
    told: Told | None = None


class Pressure(NamedTuple):
    """How full the scheduler is, as `core.messages.Telemetry` has it."""

    context_tokens: int = 0
    queue_length: int = 0
    queued_tokens: int = 0
    running: int = 0
    kv_used: int = 0
    kv_capacity: int = 0


class Sampler:
    """Takes the samples; everything else about them happens on the thread that reads ``samples``.

    With the caches emptied by the model every attribute read costs the scheduler about a microsecond, so what can be
    read a little later is: `pressure` belongs to the reading thread.

    Attributes:
        samples: for the reading thread.
        was_idle: the scheduler has had nothing to run since the last sample; it says so itself.
    """

    def __init__(self, scheduler: Any, launches: deque[Launch], bound: int):
        """At most ``bound`` samples wait to be read; then the oldest are dropped."""
        self.samples: deque[PrefillSample | DecodeSample] = deque(maxlen=bound)
        self.was_idle = False
        self._scheduler = scheduler
        self._launches = launches
        self._is_hybrid = bool(scheduler.is_hybrid_swa or scheduler.is_hybrid_ssm)
        self._queued_tokens = 0
        self._queue_counted_ns = 0

    def prefill(self, batch: Any) -> None:
        """A prefill's result was processed."""
        after_idle, self.was_idle = self.was_idle, False
        tokens = batch.extend_num_tokens or 0
        self.samples.append(PrefillSample(time.monotonic_ns(), batch.launch_ts, tokens, after_idle))

    def decode(self, batch: Any, result: Any, overhead_ns: int) -> None:
        """A decode iteration's result was processed."""
        after_idle, self.was_idle = self.was_idle, False
        self.samples.append(
            DecodeSample(
                time.monotonic_ns(),
                batch.launch_ts,
                len(batch.reqs),
                result.speculative_num_draft_tokens,
                result.num_correct_drafts_per_req_cpu,
                self._launches.popleft() if self._launches else None,
                result.can_run_cuda_graph,
                overhead_ns,
                after_idle,
                *residency.report(),
                trim.told(result),
            )
        )

    def pressure(self) -> Pressure:
        """As of now. The scheduler may be at work meanwhile: a figure can be that of the moment before."""
        scheduler = self._scheduler
        queue, capacity = scheduler.waiting_queue, scheduler.max_total_num_tokens
        running = list(scheduler.running_batch.reqs)
        if self._is_hybrid:
            used = scheduler.pool_stats_observer.get_pool_stats().full_num_used
        else:
            free = scheduler.token_to_kv_pool_allocator.available_size()
            used = capacity - free - scheduler.tree_cache.evictable_size()
        return Pressure(
            sum([req.kv_committed_len for req in running]),
            len(queue) + len(scheduler.grammar_manager.grammar_queue),
            self._queued(queue) if queue else 0,
            len(running),
            max(0, used),
            capacity,
        )

    def _queued(self, queue: list[Any]) -> int:
        """Prompt tokens of the waiting requests; of a long queue, an estimate from its head."""
        now = time.monotonic_ns()
        if now - self._queue_counted_ns > _QUEUE_PERIOD_NS:
            self._queue_counted_ns = now
            head = queue[:_QUEUE_COUNTED]
            self._queued_tokens = sum([len(req.origin_input_ids) for req in head]) * len(queue) // max(1, len(head))
        return self._queued_tokens
