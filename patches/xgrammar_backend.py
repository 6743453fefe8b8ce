"""constrained/xgrammar_backend.py, SGLang 0.5.17: JSON schemas and regular expressions on a CPU.

SGLang allocates the token mask in pinned memory, which only a machine with a GPU has, and has no way to apply it to
logits on a CPU, though xgrammar itself does.
"""

from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_MODULE = "sglang.srt.constrained.xgrammar_backend"

SEAMS = (
    Seam(f"{_MODULE}:_allocate_token_bitmask", ("vocab_size", "batch_size"), "hook", "there is no pinned memory"),
    Seam(
        f"{_MODULE}:XGrammarGrammar.apply_vocab_mask",
        ("logits", "vocab_mask"),
        "hook",
        "a grammar would be refused on a CPU",
    ),
)


def allocate_token_bitmask(vocab_size: int, batch_size: int) -> torch.Tensor:
    """All tokens allowed: int32 ``[batch_size, ceil(vocab_size / 32)]``, all bits set."""
    from xgrammar import allocate_token_bitmask

    return allocate_token_bitmask(batch_size, vocab_size)


def apply_vocab_mask(_grammar: Any, logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
    """Set the logits of forbidden tokens to -inf, in place. ``logits`` is ``[rows, vocabulary]``, on the CPU."""
    from xgrammar import apply_token_bitmask_inplace

    apply_token_bitmask_inplace(logits, vocab_mask)


def apply() -> None:
    HookRegistry.register(f"{_MODULE}._allocate_token_bitmask", allocate_token_bitmask, HookType.REPLACE)
    HookRegistry.register(f"{_MODULE}.XGrammarGrammar.apply_vocab_mask", apply_vocab_mask, HookType.REPLACE)
