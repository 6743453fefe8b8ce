"""speculative/standalone_worker_v2.py, SGLang 0.5.17: γ can change with a STANDALONE draft, a complete small model.

The worker inherits all that switching needs from EAGLE's (states for each γ, and how to activate them) but leaves the
controller that does it as a TODO. Its draft and its passes over prompts and tokens are EAGLE's too, so what
patches/eagle_worker_v2.py hooks there holds for both.
"""

from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.patches.seams import Seam

ROLES = ("scheduler",)

_INIT = "sglang.srt.speculative.standalone_worker_v2:StandaloneWorkerV2.__init__"

SEAMS = (
    Seam(
        _INIT,
        ("server_args", "gpu_id", "ps", "nccl_port", "target_worker"),
        "hook",
        "or γ can't change with a STANDALONE draft",
    ),
)


def add_controller(_result: None, worker: Any, server_args: Any, *_rest: Any, **_named: Any) -> None:
    if server_args.speculative_adaptive:
        from sglang.srt.speculative.adaptive_runtime_state import AdaptiveController

        worker.adaptive_controller = AdaptiveController(worker, config_path=server_args.speculative_adaptive_config)


def apply() -> None:
    HookRegistry.register(_INIT.replace(":", "."), add_controller, HookType.AFTER)
