"""What every process of the CPU engine does before it imports SGLang."""

import functools
import importlib.util
import os
import sys

import torch

from sglang_nightjar.cpu import kernels, standin, threads
from sglang_nightjar.cpu.detect import EngineChoice, choose_engine

_torchvision_operators: list[torch.library.Library] = []


@functools.cache
def prepare_process() -> EngineChoice:
    """Make SGLang importable and fast on this machine's engine; call it before the first import of sglang.

    On a CUDA machine nothing changes. On a CPU: SGLANG_USE_CPU_ENGINE=1, the operators that torchvision's wheel misses
    under a CPU build of torch, our kernels and the stand-in for ``sgl_kernel`` unless the real one is there. Children
    are spawned and inherit nothing of it but the environment, so each process calls this for itself.

    Returns the engine chosen. Raises ``RuntimeError`` if SGLang is already imported for another engine, and
    ``KernelBuildError`` if the kernels can't be compiled.
    """
    choice = choose_engine()
    if not choice.is_cpu:
        return choice
    if "sglang.srt.utils" in sys.modules and os.environ.get("SGLANG_USE_CPU_ENGINE") != "1":
        raise RuntimeError(
            "sglang was imported before sglang_nightjar prepared the CPU engine: "
            "import sglang_nightjar first, or set SGLANG_USE_CPU_ENGINE=1"
        )
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    define_torchvision_operators()
    if choice.engine == "nightjar":
        threads.configure()
        if kernels.use_native():
            kernels.load()
        standin.install()
    return choice


def define_torchvision_operators() -> None:
    """Define the schemas of ``torchvision::nms`` and ``qnms`` if nobody has.

    PyPI's torchvision is linked against CUDA; under a CPU build of torch its C++ part does not load and its import
    fails because it attaches fake kernels to these operators. A schema is enough: text models never call them.
    """
    if importlib.util.find_spec("torchvision") is None or "torchvision" in sys.modules or torch.version.cuda:
        return
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _torchvision_operators.append(operators)
