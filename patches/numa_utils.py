"""utils/numa_utils.py, SGLang 0.5.17: the ranks of TP groups, and of their replicas, share a CPU's cores.

SGLang gives each rank a NUMA node of its own, and refuses more ranks than nodes; only the AMX kernels use the cores
that it picks. Ours take a number of threads.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.cpu import standin, threads
from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_TARGET = "sglang.srt.utils.numa_utils:init_threads_binding"

SEAMS = (
    Seam(_TARGET, ("tp_rank", "tp_size"), "hook", "to run more ranks than NUMA nodes"),
    Seam("sglang.srt.runtime_context:get_server_args", (), "call", "to know how many replicas there are"),
    Seam("sglang.srt.server_args:ServerArgs.dp_size", None, "field", "this many"),
    Seam("sglang.srt.server_args:ServerArgs.enable_dp_attention", None, "field", "or one, whose ranks tp_size counts"),
)


def share_threads(original: Callable[..., Any], *, tp_rank: int, tp_size: int) -> Any:
    if not standin.is_installed():
        return original(tp_rank=tp_rank, tp_size=tp_size)
    from sglang.srt.runtime_context import get_server_args

    args = get_server_args()
    ranks = tp_size if args.enable_dp_attention else tp_size * args.dp_size
    torch.set_num_threads(max(1, threads.thread_count() // ranks))
    return None


def apply() -> None:
    HookRegistry.register(_TARGET.replace(":", "."), share_threads, HookType.AROUND)
