"""model_executor/model_runner_components/weight_updater.py, SGLang 0.5.17: new weights reach the packed copies.

SGLang's updates write to the plain weights. Whatever an update returns, also after a failure and roll-back, the packed
copies are renewed from them.
"""

from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.cpu import packed_linear
from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater:WeightUpdater"
_METHODS = (
    "update_weights_from_disk",
    "update_weights_from_distributed",
    "update_weights_from_tensor",
    "update_weights_from_ipc",
)

SEAMS = tuple(
    Seam(f"{_UPDATER}.{name}", None, "hook", "or a weight update would not reach the packed weights")
    for name in _METHODS
)


def refresh_packed(_result: Any, updater: Any, *_args: Any, **_kwargs: Any) -> None:
    packed_linear.refresh(updater.get_model())


def apply() -> None:
    for name in _METHODS:
        HookRegistry.register(f"{_UPDATER.replace(':', '.')}.{name}", refresh_packed, HookType.AFTER)
