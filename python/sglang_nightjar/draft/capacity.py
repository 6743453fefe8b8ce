"""Every copy of the KV capacity that SGLang keeps and reads while it runs, set in one place.

SGLang's leak checks compare what is free and used with a copy of the capacity at every idle moment, and end the
scheduler when they differ; so all copies change together with the list of free slots. Copies that SGLang reads once at
the start stay: the lengths that it admits requests by are those of the base capacity, so that every admitted request
fits after a shrink; and ``sglang:max_total_num_tokens`` on ``/metrics`` stays the base (``nightjar:kv_capacity_tokens``
follows).
"""

from typing import Any

from sglang_nightjar.patches.seams import Seam

_SCHEDULER = "sglang.srt.managers.scheduler:Scheduler"
_PARTS = "sglang.srt.managers.scheduler_components"

#: Attributes of the scheduler that have a copy.
_HOLDERS = ("pool_stats_observer", "invariant_checker", "kv_events_publisher", "load_inquirer")

SEAMS = (
    Seam(f"{_PARTS}.pool_stats_observer:SchedulerPoolStatsObserver.max_total_num_tokens", None, "field", "KV capacity"),
    Seam(f"{_PARTS}.invariant_checker:SchedulerInvariantChecker.max_total_num_tokens", None, "field", "KV capacity"),
    Seam(f"{_PARTS}.kv_events_publisher:SchedulerKvEventsPublisher.max_total_num_tokens", None, "field", "KV capacity"),
    Seam(f"{_PARTS}.load_inquirer:SchedulerLoadInquirer.max_total_num_tokens", None, "field", "KV capacity"),
    Seam("sglang.srt.mem_cache.allocator.base:BaseTokenToKVPoolAllocator.resize", ("config",), "call", "KV capacity"),
)


def current(scheduler: Any) -> int:
    """The capacity in tokens."""
    return int(scheduler.max_total_num_tokens)


def put(scheduler: Any, tokens: int) -> None:
    """Make ``tokens`` the capacity; the caller has changed the free slots by the same number."""
    scheduler.max_total_num_tokens = tokens
    for name in _HOLDERS:
        # Some are frozen dataclasses with slots.
        object.__setattr__(getattr(scheduler, name), "max_total_num_tokens", tokens)
    allocator = scheduler.token_to_kv_pool_allocator
    allocator.size = tokens
    if hasattr(allocator, "num_pages"):
        allocator.num_pages = tokens // allocator.page_size
