"""model_executor/runner/decode_cuda_graph_runner.py, SGLang 0.5.17: graphs of further γ warm up with their own backend,
and those of γ=0 are graphs of decoding.

With several γ the target gets a graph runner and an attention backend for each. While SGLang captures, it takes the
hook that a backend wants called after warm-up from the model runner's current backend, the initial γ's, and not from
the one that it captures for; 0.5.19 takes the right one.

The graphs of γ=0 would verify chains of one token. Where γ is Nightjar's to choose they are captured as decode steps
that also hand out the hidden states for the journal, if the draft reads any; draft/plain_decode.py uses them if they
were.

On a CPU there are no graphs; this has not run on a GPU yet.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.agent import candidates
from sglang_nightjar.patches.seams import Seam

ROLES = ("scheduler",)

_CLASS = "sglang.srt.model_executor.runner.decode_cuda_graph_runner:DecodeCudaGraphRunner"
_TARGET = f"{_CLASS}.__init__"
_SPEC_INFO = f"{_CLASS}.get_spec_info"

SEAMS = (
    Seam(
        _TARGET,
        ("model_runner", "attn_backend", "speculative_num_steps", "speculative_num_draft_tokens"),
        "hook",
        "or the warm-up of further γ acts on the initial γ's attention backend",
    ),
    Seam(_SPEC_INFO, ("num_tokens",), "hook", "or γ=0 runs graphs of verification"),
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


def decode_at_gamma_0(original: Callable[..., Any], runner: Any, num_tokens: int) -> Any:
    """SGLang asks for this right before it decides what to capture."""
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardMode

    model_runner = runner.model_runner
    algorithm = model_runner.spec_algorithm
    if (
        model_runner.is_draft_worker
        or not (algorithm.is_eagle() or algorithm.is_standalone())
        or runner.speculative_num_draft_tokens != 1
        or candidates.parse(model_runner.server_args.speculative_adaptive_config) is None
    ):
        return original(runner, num_tokens)
    runner.capture_forward_mode = ForwardMode.DECODE
    runner.capture_hidden_mode = CaptureHiddenMode.NULL if algorithm.is_standalone() else CaptureHiddenMode.FULL
    return None


def apply() -> None:
    HookRegistry.register(_SPEC_INFO.replace(":", "."), decode_at_gamma_0, HookType.AROUND)
    HookRegistry.register(_TARGET.replace(":", "."), capture_with_its_own_backend, HookType.AROUND)
