"""Whether this process computes with the C++ kernels, and the operators themselves: ``torch.ops.nightjar``."""

import functools
import os

import torch

from sglang_nightjar.cpu import build
from sglang_nightjar.cpu.detect import choose_engine

# "native" (the default); "float32": the same without the tile registers of AMX, so that every product is a float's; or
# "torch": plain torch instead of C++, slow, for comparison and for machines without compiler.
KERNELS_ENV = "NIGHTJAR_CPU_KERNELS"
_SETTINGS = ("native", "float32", "torch")

#: Tiles multiply weights whose depth is a multiple of it (csrc/tiles.h).
TILE_DEPTH = 32


@functools.cache
def setting() -> str:
    """Which kernels are wanted; raises ValueError for a setting that does not exist."""
    wanted = os.environ.get(KERNELS_ENV, "native")
    if wanted not in _SETTINGS:
        raise ValueError(f"{KERNELS_ENV}={wanted}: it can be {', '.join(map(repr, _SETTINGS))}")
    return wanted


def use_native() -> bool:
    """True if the C++ kernels are wanted; raises ValueError for a setting that does not exist."""
    return setting() != "torch"


def use_tiles(depth: int) -> bool:
    """True if weights ``[out, depth]`` are to be multiplied in AMX's tile registers, which this machine must have."""
    return setting() == "native" and torch.ops.nightjar.tiles_possible(depth)


@functools.cache
def load() -> None:
    """Make ``torch.ops.nightjar`` exist, compiling it the first time. Raises KernelBuildError."""
    torch.ops.load_library(str(build.build()))


def in_use() -> bool:
    """True if this process computes on our C++ kernels: no GPU, no AMX kernels of SGLang's, and not switched off."""
    return choose_engine().engine == "nightjar" and use_native()
