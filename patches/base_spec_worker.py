"""speculative/base_spec_worker.py, SGLang 0.5.17: a switch of γ allocates nothing.

A draft chain's parents and score indices depend on γ alone, but SGLang makes them anew, on the device, at every switch.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.patches.seams import Seam

ROLES = ("scheduler",)

_CLASS = "sglang.srt.speculative.base_spec_worker:EagleDraftWorkerBase"
_BUFFERS = ("_topk1_parents_prealloc", "_topk1_score_indices_prealloc")

SEAMS = (
    Seam(f"{_CLASS}._rebuild_topk1_chain_buffers", (), "hook", "to keep the buffers of each γ"),
    *(Seam(f"{_CLASS}.{name}", None, "field", "a chain's constants") for name in _BUFFERS),
)


def keep_buffers(original: Callable[[Any], None], worker: Any) -> None:
    if worker.topk != 1 or not worker.server_args.speculative_adaptive:
        original(worker)
        return
    kept = worker.__dict__.setdefault("_nightjar_chain_buffers", {})
    key = (worker.speculative_num_steps, _max_batch_size())
    if key not in kept:
        original(worker)
        kept[key] = tuple(getattr(worker, name) for name in _BUFFERS)
    for name, buffer in zip(_BUFFERS, kept[key], strict=True):
        setattr(worker, name, buffer)


def _max_batch_size() -> tuple[Any, Any]:
    """What SGLang sizes the buffers by; during the start it still changes."""
    from sglang.srt.runtime_context import get_exec, get_schedule

    graphs = get_exec().graph.cuda_graph_config
    return (graphs.decode.max_bs if graphs is not None else None), get_schedule().max_running_requests


def apply() -> None:
    HookRegistry.register(f"{_CLASS.replace(':', '.')}._rebuild_topk1_chain_buffers", keep_buffers, HookType.AROUND)
