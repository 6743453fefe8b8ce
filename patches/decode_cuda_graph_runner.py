"""model_executor/runner/decode_cuda_graph_runner.py, SGLang 0.5.17: graphs of further γ warm up with their own backend.

With several γ the target gets a graph runner and an attention backend for each. While SGLang captures, it takes the
hook that a backend wants called after warm-up from the model runner's current backend, the initial γ's, and not from
the one that it captures for; 0.5.19 takes the right one. On a CPU there are no graphs; this has not run on a GPU yet.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.patches.seams import Seam

ROLES = ("scheduler",)

_TARGET = "sglang.srt.model_executor.runner.decode_cuda_graph_runner:DecodeCudaGraphRunner.__init__"

SEAMS = (
    Seam(
        _TARGET,
        ("model_runner", "attn_backend", "speculative_num_steps", "speculative_num_draft_tokens"),
        "hook",
        "or the warm-up of further γ acts on the initial γ's attention backend",
    ),
)


def capture_with_its_own_backend(
    original: Callable[..., None], runner: Any, model_runner: Any, *, attn_backend: Any = None, **rest: Any
) -> None:
    if attn_backend is None:
        original(runner, model_runner, **rest)
        return
    current = model_runner.attn_backend
    model_runner.attn_backend = attn_backend
    try:
        original(runner, model_runner, attn_backend=attn_backend, **rest)
    finally:
        model_runner.attn_backend = current


def apply() -> None:
    HookRegistry.register(_TARGET.replace(":", "."), capture_with_its_own_backend, HookType.AROUND)
