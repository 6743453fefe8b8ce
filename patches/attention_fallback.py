"""arg_groups/overrides.py, SGLang 0.5.17: keep the ``intel_amx`` attention backend on a CPU without AMX.

SGLang rewrites it to ``torch_native``, which has neither verification nor multi-step drafting. Under its name our own
backend runs (patches/intel_amx_backend.py).
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.cpu import standin
from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True

_TARGET = "sglang.srt.arg_groups.overrides:_attention_backend_platform_fallbacks"

SEAMS = (Seam(_TARGET, ("view",), "hook", "or torch_native attention is used, which cannot speculate"),)


def keep_intel_amx(original: Callable[..., dict[str, Any]], view: Any) -> dict[str, Any]:
    if view.device == "cpu" and view.attention_backend == "intel_amx" and standin.is_installed():
        return {}
    return original(view)


def apply() -> None:
    HookRegistry.register(_TARGET.replace(":", "."), keep_intel_amx, HookType.AROUND)
