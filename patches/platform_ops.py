"""layers/{layernorm,activation,rotary_embedding}: norms, SiLU and rotary embeddings of single layers on our kernels.

SGLang 0.5.17 uses each operator's ``forward_native`` on a CPU without AMX: five to ten torch operators each. Models
whose layers run as one stack (cpu/llama_stack.py) do not come through here.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.cpu import kernels
from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_NORM = "sglang.srt.layers.layernorm:RMSNorm.forward_native"
_SILU = "sglang.srt.layers.activation:SiluAndMul.forward_native"
_ROTARY = "sglang.srt.layers.rotary_embedding.base:RotaryEmbedding.forward_native"

SEAMS = (
    Seam(_NORM, ("x", "residual", "post_residual_addition"), "hook", "for a fast norm"),
    Seam(_SILU, ("x",), "hook", "for a fast activation"),
    Seam(
        _ROTARY,
        ("positions", "query", "key", "offsets", "fused_set_kv_buffer_arg"),
        "hook",
        "for fast rotary embeddings",
    ),
)


def rms_norm(
    original: Callable[..., Any],
    norm: Any,
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    post_residual_addition: torch.Tensor | None = None,
) -> Any:
    from sglang_nightjar.cpu.llama_stack import plain_norm

    fits = (
        kernels.in_use()
        and x.dtype == torch.float32
        and x.dim() == 2
        and x.shape[1] == norm.hidden_size
        and x.stride(1) == 1
    )
    if not fits or not plain_norm(norm) or post_residual_addition is not None:
        return original(norm, x, residual, post_residual_addition)
    if residual is not None:
        residual = x + residual
        x = residual
    out = torch.ops.nightjar.rms_norm(x, norm.weight, norm.variance_epsilon)
    return out if residual is None else (out, residual)


def silu_and_mul(original: Callable[..., torch.Tensor], activation: Any, x: torch.Tensor) -> torch.Tensor:
    if not kernels.in_use() or x.dtype != torch.float32 or not x.is_contiguous():
        return original(activation, x)
    return torch.ops.nightjar.silu_and_mul(x)


def rotary(
    original: Callable[..., Any],
    embedding: Any,
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    offsets: torch.Tensor | None = None,
    fused_set_kv_buffer_arg: Any = None,
) -> Any:
    """Rotates in place, as SGLang's own CPU kernel does; returns ``query`` and ``key``."""
    plain = kernels.in_use() and all(
        t is not None and t.dtype == torch.float32 and t.dim() == 2 and t.stride(1) == 1 for t in (query, key)
    )
    if not plain or positions.dim() != 1 or offsets is not None or fused_set_kv_buffer_arg is not None:
        return original(embedding, positions, query, key, offsets, fused_set_kv_buffer_arg)
    table = embedding.cos_sin_cache
    torch.ops.nightjar.rotary_embedding_(positions, query, key, table, embedding.head_size, embedding.is_neox_style)
    return query, key


def apply() -> None:
    for target, hook in ((_NORM, rms_norm), (_SILU, silu_and_mul), (_ROTARY, rotary)):
        HookRegistry.register(target.replace(":", "."), hook, HookType.AROUND)
