"""mem_cache/memory_pool.py, SGLang 0.5.17: the target's KV cache on elastic buffers (draft/elastic_pool.py).

Only where the draft's memory can be given back; the draft's own pool too if it is part of that (``memory.reclaim:
weights+kv``). Every other pool is SGLang's.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.draft import elastic_memory
from sglang_nightjar.patches.seams import Seam

ROLES = ("scheduler",)

_POOL = "sglang.srt.mem_cache.memory_pool:MHATokenToKVPool"

SEAMS = (
    Seam(f"{_POOL}._create_buffers_normal", (), "hook", "or the KV cache can't grow into the draft's place"),
    Seam(f"{_POOL}._kv_buffer_shapes", (), "call", "shapes of the KV cache"),
    Seam(f"{_POOL}.move_kv_cache", ("tgt_loc", "src_loc"), "call", "to move rows on a GPU"),
)


def create_elastic(original: Callable[[Any], None], pool: Any) -> None:
    if not elastic_memory.make_pool(pool):
        original(pool)


def apply() -> None:
    HookRegistry.register(f"{_POOL.replace(':', '.')}._create_buffers_normal", create_elastic, HookType.AROUND)
