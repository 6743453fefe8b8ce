"""layers/quantization/unquant.py, SGLang 0.5.17: linear layers on packed weights (cpu/packed_linear.py).

SGLang's own path calls ``torch.nn.functional.linear``, which rearranges the weight at every call; for a handful of rows
that costs more than the product.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.cpu import packed_linear
from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_METHOD = "sglang.srt.layers.quantization.unquant:UnquantizedLinearMethod"

SEAMS = (
    Seam(f"{_METHOD}.process_weights_after_loading", ("layer",), "hook", "to pack weights at load"),
    Seam(f"{_METHOD}.apply", ("layer", "x", "bias"), "hook", "to compute on packed weights"),
)


def pack_after_loading(original: Callable[..., None], method: Any, layer: Any) -> None:
    original(method, layer)
    if packed_linear.can_pack(layer.weight):
        packed_linear.packed(layer.weight)


def apply_packed(
    original: Callable[..., torch.Tensor], method: Any, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    weight = layer.weight
    if x.dtype != weight.dtype or not packed_linear.can_pack(weight):
        return original(method, layer, x, bias)
    return packed_linear.packed(weight).linear(x, bias)


def apply() -> None:
    prefix = _METHOD.replace(":", ".")
    HookRegistry.register(f"{prefix}.process_weights_after_loading", pack_after_loading, HookType.AROUND)
    HookRegistry.register(f"{prefix}.apply", apply_packed, HookType.AROUND)
