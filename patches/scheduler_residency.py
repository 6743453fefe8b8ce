"""managers/scheduler.py, SGLang 0.5.17: the draft gives its memory back, and comes back (draft/residency.py).

In front of each iteration one bounded piece of a transition is done, on every rank; nothing is while a batch is between
its scheduling and its result.
"""

import logging
from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.agent import scheduler_agent, settings
from sglang_nightjar.draft import elastic_memory, residency
from sglang_nightjar.patches.seams import Seam

logger = logging.getLogger(__name__)

ROLES = ("scheduler",)

_CLASS = "sglang.srt.managers.scheduler:Scheduler"

SEAMS = (
    Seam(f"{_CLASS}.init_target_memory_pool", (), "hook", "to make the target's KV cache elastic"),
    Seam(f"{_CLASS}.init_memory_pools", (), "hook", "to move the draft's weights before graphs are captured"),
    Seam(f"{_CLASS}.init_request_dispatcher", (), "hook", "to start once the scheduler is complete"),
    Seam(f"{_CLASS}.get_next_batch_to_run", ("running_batch", "last_batch"), "hook", "between two iterations"),
    Seam(f"{_CLASS}.init_req_max_new_tokens", ("req",), "hook", "or some are let in that are too long after a shrink"),
    Seam(f"{_CLASS}.flush_cache", None, "hook", "it makes all slots free, withheld ones too"),
)


def make_elastic(original: Callable[[Any], None], scheduler: Any) -> None:
    given = settings.load()
    if not given.steered or not given.offload:
        residency.why_not = "memory.mode is keep" if given.steered else "γ is not Nightjar's to choose"
    else:
        residency.why_not = elastic_memory.obstacle(scheduler)
    if residency.why_not:
        original(scheduler)
        return
    with elastic_memory.reserving(scheduler, given.reclaim_kv):
        original(scheduler)


def move_weights(_result: None, scheduler: Any) -> None:
    elastic_memory.move_weights(scheduler)


def start(_result: None, scheduler: Any) -> None:
    if (agent := scheduler_agent.current) is not None:
        elastic_memory.start(scheduler, agent.selector, settings.load().retract)


def between_iterations(scheduler: Any, running_batch: Any, last_batch: Any) -> None:
    if residency.current is None:
        return
    try:
        residency.current.step(last_batch)
    except Exception as error:
        if scheduler.ps.tp_size > 1:
            # The other ranks would wait for this one; an end that is seen is better than that.
            raise
        logger.exception("Nightjar: the draft stays where it is, because of a bug of ours")
        residency.abandon(f"a fault: {error!r}")


def clip_by_base(original: Callable[[Any, Any], None], scheduler: Any, req: Any) -> None:
    """What a request may ask for follows from the capacity; it must fit into that which is left after a shrink."""
    if residency.current is None:
        original(scheduler, req)
        return
    capacity = scheduler.max_total_num_tokens
    scheduler.max_total_num_tokens = min(capacity, residency.current.pool.base_tokens)
    try:
        original(scheduler, req)
    finally:
        scheduler.max_total_num_tokens = capacity


def after_flush(_result: Any, _scheduler: Any, *_rest: Any, **_named: Any) -> None:
    if residency.current is not None:
        residency.current.tail.after_flush()


def apply() -> None:
    prefix = _CLASS.replace(":", ".")
    for name, hook, kind in (
        ("init_target_memory_pool", make_elastic, HookType.AROUND),
        ("init_memory_pools", move_weights, HookType.AFTER),
        # After patches/scheduler.py's hook on the same method, which starts the agent: hooks run in the order of names.
        ("init_request_dispatcher", start, HookType.AFTER),
        ("get_next_batch_to_run", between_iterations, HookType.BEFORE),
        ("init_req_max_new_tokens", clip_by_base, HookType.AROUND),
        ("flush_cache", after_flush, HookType.AFTER),
    ):
        HookRegistry.register(f"{prefix}.{name}", hook, kind)
