"""model_executor/forward_batch_info.py, SGLang 0.5.17: positions of a batch without a loop over its requests.

``compute_position_torch`` makes a range per request from tensors of one number each: half a millisecond of a step with
one request, more with many, in front of every prompt and every pass of the draft over verified tokens.
"""

import numpy as np
import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_TARGET = "sglang.srt.model_executor.forward_batch_info:compute_position_torch"

SEAMS = (
    Seam(_TARGET, ("extend_prefix_lens", "extend_seq_lens"), "hook", "or each pass of the draft loops over requests"),
)


def compute_position(prefix_lens: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of ``lens[i]`` new tokens behind ``prefix_lens[i]`` old ones, both ``[batch]``: what SGLang's function returns.

    Positions int64 ``[sum(lens)]``, request by request, and where each request begins in them, ``[batch]`` in the type
    of ``lens``.
    """
    prefixes, counts = prefix_lens.numpy(), lens.numpy()
    ends = np.cumsum(counts, dtype=np.int64)
    starts = ends - counts
    positions = np.arange(ends[-1] if len(ends) else 0) + np.repeat(prefixes - starts, counts)
    return torch.from_numpy(positions), torch.from_numpy(starts).to(lens.dtype)


def apply() -> None:
    HookRegistry.register(_TARGET.replace(":", "."), compute_position, HookType.REPLACE)
