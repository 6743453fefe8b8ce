"""Which engine this machine gets, and why.

Three are possible: ``cuda`` (SGLang's own kernels), ``sgl_kernel`` (SGLang's own CPU kernels, which need AMX) and
``nightjar`` (the portable kernels of this package). Every other module asks here, so that ``nightjar doctor`` prints
the decision that the server takes.
"""

import functools
import importlib.util
import os
from dataclasses import dataclass
from typing import Literal

import torch

EngineName = Literal["cuda", "sgl_kernel", "nightjar"]

# The operator whose presence makes SGLang 0.5.17 believe in its AMX kernels (srt/utils/common.py).
AMX_MARKER_OP = "convert_weight_packed"


@dataclass(frozen=True)
class EngineChoice:
    """The engine for this machine and the reason, as one sentence for people."""

    engine: EngineName
    reason: str

    @property
    def is_cpu(self) -> bool:
        return self.engine != "cuda"


def has_amx() -> bool:
    """True if the CPU and the operating system offer AMX tiles (the same question that SGLang asks)."""
    return bool(torch.cpu._is_amx_tile_supported())


def has_real_sgl_kernel() -> bool:
    """True if SGLang's own ``sgl_kernel`` for CPUs is installed and loads with its AMX operators.

    Must be asked before our stand-in enters ``sys.modules``.
    """
    if importlib.util.find_spec("sgl_kernel") is None:
        return False
    try:
        import sgl_kernel  # noqa: F401
    except Exception:
        # A wheel for another CPU or CUDA version fails with anything from OSError to SystemError.
        return False
    return hasattr(torch.ops.sgl_kernel, AMX_MARKER_OP)


@functools.cache
def choose_engine() -> EngineChoice:
    """Decide the engine for this process; the first answer stands for the life of the process."""
    forced_cpu = os.environ.get("SGLANG_USE_CPU_ENGINE") == "1"
    if torch.cuda.is_available() and not forced_cpu:
        return EngineChoice("cuda", f"{torch.cuda.device_count()} CUDA GPU(s) usable")
    why_cpu = "SGLANG_USE_CPU_ENGINE=1 asks for it" if forced_cpu else "no usable CUDA GPU was found"
    if not has_amx():
        return EngineChoice("nightjar", f"{why_cpu}; this CPU has no AMX, which SGLang's own CPU kernels need")
    if not has_real_sgl_kernel():
        return EngineChoice("nightjar", f"{why_cpu}; the CPU has AMX, but no sgl_kernel built for CPUs can be imported")
    return EngineChoice("sgl_kernel", f"{why_cpu}; the CPU has AMX and SGLang's own sgl_kernel is installed")
