"""mem_cache/allocation_sizing.py, SGLang 0.5.17: slots held in advance follow the γ in force (draft/reserve.py).

SGLang derives them from the largest γ at the start, so at γ=0 every running request would still pin 2 · (γmax + 1)
slots. The question of the start, how wide a request's row of slots must be, keeps SGLang's answer.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.draft import upkeep
from sglang_nightjar.patches.seams import Seam

ROLES = ("scheduler",)

_RESERVE = "sglang.srt.mem_cache.allocation_sizing:get_alloc_reserve_per_decode"
_CHECK = "sglang.srt.managers.schedule_batch:ScheduleBatch.check_decode_mem"

SEAMS = (
    Seam(_RESERVE, ("server_args",), "hook", "or γ=0 holds slots for drafts"),
    Seam(_CHECK, ("selected_indices",), "hook", "or drafts retract requests for want of slots"),
)


def reserve(original: Callable[..., int], server_args: Any = None) -> int:
    if upkeep.current is None or server_args is not None:
        return original(server_args)
    return upkeep.current.reserve.slots()


def check_decode_mem(original: Callable[..., bool], batch: Any, selected_indices: list[int] | None = None) -> bool:
    if upkeep.current is None or selected_indices is not None:
        return original(batch, selected_indices)
    return upkeep.current.settle_reserve(batch, lambda: original(batch))


def apply() -> None:
    HookRegistry.register(_RESERVE.replace(":", "."), reserve, HookType.AROUND)
    HookRegistry.register(_CHECK.replace(":", "."), check_decode_mem, HookType.AROUND)
