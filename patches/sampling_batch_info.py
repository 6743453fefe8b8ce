"""sampling/sampling_batch_info.py, SGLang 0.5.17: a batch keeps its penalizers during its forward pass.

For a forward pass SGLang replaces them by their sum, one row per request. A verification needs them themselves: each
row of a chain has other penalties (cpu/penalty_states.py).
"""

from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.cpu.chain_verify import PENALIZERS
from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_INFO = "sglang.srt.sampling.sampling_batch_info:SamplingBatchInfo"
_ORCHESTRATOR = "sglang.srt.sampling.penaltylib.orchestrator:BatchedPenalizerOrchestrator"

SEAMS = (
    Seam(f"{_INFO}.copy_for_forward", (), "hook", "or verification would see one penalty for a whole chain"),
    Seam(f"{_ORCHESTRATOR}.apply", ("logits", "repeat"), "call", "to apply penalties to a row of a chain"),
    Seam(f"{_ORCHESTRATOR}.cumulate_output_tokens", ("output_ids",), "call", "to count the drafts of a chain"),
)


def keep_penalizers(copy: Any, original: Any) -> None:
    setattr(copy, PENALIZERS, original.penalizer_orchestrator)


def apply() -> None:
    HookRegistry.register(f"{_INFO.replace(':', '.')}.copy_for_forward", keep_penalizers, HookType.AFTER)
