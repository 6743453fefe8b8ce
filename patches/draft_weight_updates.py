"""model_executor/model_runner_components/weight_updater.py, SGLang 0.5.17: new weights of the draft last.

The draft comes back from a copy on the host (draft/weights.py), so an update must reach that too. A draft that is away
when an update comes is fetched for it.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.core.messages import Residency
from sglang_nightjar.draft import residency
from sglang_nightjar.memory.elastic import MemoryRefusedError
from sglang_nightjar.patches.seams import Seam

ROLES = ("scheduler",)

_UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater:WeightUpdater"
_METHODS = (
    "update_weights_from_disk",
    "update_weights_from_distributed",
    "update_weights_from_tensor",
    "update_weights_from_ipc",
)

SEAMS = tuple(
    Seam(f"{_UPDATER}.{name}", None, "hook", "or the draft comes back with the weights that it had before an update")
    for name in _METHODS
)


def update_at_home(original: Callable[..., Any], updater: Any, *args: Any, **kwargs: Any) -> Any:
    driver = residency.current
    if driver is None or driver.weights.model is not updater.get_model():
        return original(updater, *args, **kwargs)
    weights = driver.weights
    was_away = not weights.on_device
    if was_away:
        try:
            weights.load_now()
        except MemoryRefusedError as error:
            return False, f"the draft's memory is in use as KV cache, and there is no other: {error}"
    try:
        return original(updater, *args, **kwargs)
    finally:
        weights.renew()
        # One that is being loaded goes on from the new copy.
        if was_away and driver.machine.state is not Residency.LOADING:
            for _ in weights.release():
                pass


def apply() -> None:
    for name in _METHODS:
        HookRegistry.register(f"{_UPDATER.replace(':', '.')}.{name}", update_at_home, HookType.AROUND)
