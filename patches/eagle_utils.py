"""speculative/eagle_utils.py, SGLang 0.5.17: verification on a CPU gives each request what it asked for.

SGLang verifies with the target's argmax whenever the device is a CPU, so a request with a temperature silently gets
greedy text from its second token on; penalties and custom logit processors are silently dropped. See
cpu/chain_verify.py. SGLang's simulation of acceptance lengths (SGLANG_SIMULATE_ACC_LEN) keeps its own path.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.cpu import chain_verify
from sglang_nightjar.patches.seams import Seam

CPU_ONLY = True
ROLES = ("scheduler",)

_MODULE = "sglang.srt.speculative.eagle_utils"

SEAMS = (
    Seam(
        f"{_MODULE}:eagle_sample",
        ("verify_input", "batch", "logits_output", "grammar_mask"),
        "hook",
        "to verify with the distribution that a request asked for",
    ),
    Seam("sglang.srt.speculative.spec_utils:SIMULATE_ACC_LEN", None, "field", "to leave simulations alone"),
    Seam(
        "sglang.srt.layers.sampler:apply_custom_logit_processor",
        ("logits", "sampling_batch_info", "num_tokens_in_batch"),
        "call",
        "to apply custom logit processors to verified tokens",
    ),
)


def eagle_sample(
    original: Callable[..., Any], verify_input: Any, batch: Any, logits_output: Any, grammar_mask: Any = None
) -> Any:
    from sglang.srt.speculative.spec_utils import SIMULATE_ACC_LEN

    if batch.forward_mode.is_idle() or SIMULATE_ACC_LEN > 0:
        return original(verify_input, batch, logits_output, grammar_mask)
    return chain_verify.verify_chain(verify_input, batch, logits_output, grammar_mask)


def apply() -> None:
    HookRegistry.register(f"{_MODULE}.eagle_sample", eagle_sample, HookType.AROUND)
