"""Waits until nothing that was launched still reads or writes KV rows or the draft's weights.

SGLang's normal loop has processed everything when it chooses the next batch. Its overlapped loop has not: a forward
pass is under way, and its result waits in a queue. The overlapped case has not run on a GPU yet.
"""

from collections.abc import Callable
from typing import Any

from sglang_nightjar.patches.seams import Seam

Fence = Callable[[], None]

_SCHEDULER = "sglang.srt.managers.scheduler:Scheduler"

SEAMS = (
    Seam(f"{_SCHEDULER}.event_loop_overlap", (), "call", "its result_queue holds what was launched"),
    Seam(f"{_SCHEDULER}.process_batch_result", ("batch", "result"), "call", "to take results before rows move"),
)


def of(scheduler: Any) -> Fence:
    """The fence of a scheduler, to be called in front of ``get_next_batch_to_run``."""

    def fence() -> None:
        queue = getattr(scheduler, "result_queue", None)
        if queue:
            while queue:
                batch, result = queue.popleft()
                scheduler.process_batch_result(batch, result)
            # Else the loop would take this result once more. It has already passed this batch on to be merged.
            scheduler.last_batch = None
        if scheduler.enable_overlap:
            scheduler.forward_stream.synchronize()

    return fence
