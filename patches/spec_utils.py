"""speculative/spec_utils.py, SGLang 0.5.17: draft-extend graphs as wide as the γ that they are captured for.

SGLang derives the width from the arguments at the start, so with several γ all draft-extend graphs have the width of
the initial one, none fits at any other γ, and the draft-extend runs eagerly there. 0.5.23 reads the γ in force, as
this does. On a CPU there are no graphs; this has not run on a GPU yet.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.patches.seams import Seam

ROLES = ("scheduler",)

_TARGET = "sglang.srt.speculative.spec_utils:resolve_num_tokens_per_req"

SEAMS = (
    Seam(
        _TARGET,
        ("phase", "server_args", "spec_algorithm", "is_draft_worker", "num_draft_tokens"),
        "hook",
        "or draft-extend runs eagerly at every γ but the initial one",
    ),
    Seam("sglang.srt.runtime_context:get_spec", (), "call", "the γ in force"),
)


def width_of_the_gamma_in_force(original: Callable[..., int], *, phase: str, server_args: Any, **rest: Any) -> int:
    if phase == "draft_extend" and server_args.speculative_adaptive:
        from sglang.srt.runtime_context import get_spec

        return int(get_spec().speculative_num_draft_tokens)
    return original(phase=phase, server_args=server_args, **rest)


def apply() -> None:
    HookRegistry.register(_TARGET.replace(":", "."), width_of_the_gamma_in_force, HookType.AROUND)
