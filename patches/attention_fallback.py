"""arg_groups/overrides.py, SGLang 0.5.17: keep the ``intel_amx`` attention backend on a CPU without AMX.

SGLang rewrites it to ``torch_native``, which has neither verification nor multi-step drafting. The backend's Python is
generic; only the two operators that it calls need AMX, and the CPU engine supplies them (cpu/standin.py).
"""

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.cpu import standin
from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True

SEAMS = (
    Seam(
        "sglang.srt.arg_groups.overrides:_attention_backend_platform_fallbacks",
        ("view",),
        "hook",
        "without it the CPU engine would be left with torch_native attention, which cannot speculate",
    ),
)


def keep_intel_amx(original, view) -> dict:
    if view.device == "cpu" and view.attention_backend == "intel_amx" and standin.is_installed():
        return {}
    return original(view)


def apply() -> None:
    HookRegistry.register(
        "sglang.srt.arg_groups.overrides._attention_backend_platform_fallbacks", keep_intel_amx, HookType.AROUND
    )
