"""Server settings that Nightjar fills in where the user left SGLang's default.

SGLang's own defaults are made for GPUs. Each rule here says why it departs from them; whatever the user sets stays.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

from sglang_nightjar.agent import candidates
from sglang_nightjar.agent.settings import Settings
from sglang_nightjar.cpu.detect import EngineChoice

# Requests decoded at once on a CPU. Must be explicit: with speculation SGLang lowers an unset value to 48, without a
# word, and then a comparison with a server without speculation compares two different batch sizes.
CPU_MAX_RUNNING_REQUESTS = 64

# KV cache on a CPU: at most this many tokens, and at most this part of the memory now free. SGLang would take most of
# the machine's memory, and fill it with zeros at start.
CPU_MAX_KV_TOKENS = 32_768
CPU_KV_MEMORY_PART = 0.25


def for_engine(choice: EngineChoice, args: Any) -> dict[str, Any]:
    """The settings to fill in, by ServerArgs field name.

    ``args`` is anything with ServerArgs' attributes, as the user gave them (before SGLang resolves them).
    """
    return _for_cpu(choice, args) if choice.is_cpu else _for_cuda(args)


# The kinds of draft with which γ can change; for the last one patches/standalone_worker_v2.py completes SGLang.
_CHAIN_DRAFTS = ("EAGLE", "EAGLE3", "STANDALONE")

# With these SGLang can't switch γ (adaptive_unsupported_reason), so it stays as the user set it.
_FIXED_GAMMA_FEATURES = (
    "enable_dp_attention",
    "enable_multi_layer_eagle",
    "enable_two_batch_overlap",
    "enable_pdmux",
)


def for_steering(settings: Settings, args: Any) -> dict[str, Any]:
    """The settings with which γ can be chosen at run time, if it is Nightjar's to choose; by ServerArgs field name.

    It is not where the user wants plain SGLang, SGLang's own adaptive rule, a tree of drafts, or something with which
    SGLang can't switch.
    """
    if (
        not settings.steered
        or args.speculative_algorithm not in _CHAIN_DRAFTS
        or args.speculative_adaptive
        or args.speculative_eagle_topk not in (None, 1)
        or any(getattr(args, name, False) for name in _FIXED_GAMMA_FEATURES)
    ):
        return {}
    chosen = candidates.choose(settings, args.speculative_num_steps)
    # SGLang sizes its logits buffer, and decides what attention needs on the host, by the γ at the start.
    largest = max(chosen.gammas)
    return {
        "speculative_adaptive": True,
        "speculative_adaptive_config": chosen.dump(),
        "speculative_num_steps": largest,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": largest + 1,
    }


def _for_cpu(choice: EngineChoice, args: Any) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    if args.device is None:
        filled["device"] = "cpu"
    if args.dtype == "auto":
        # Without AMX, bf16 matrix products are several times slower than fp32 ones; with AMX it is the reverse.
        filled["dtype"] = "float32" if choice.engine == "nightjar" else "bfloat16"
    if not args.sleep_on_idle:
        # An idle scheduler polls without a pause: on a GPU server that costs one core of many, here half the machine.
        filled["sleep_on_idle"] = True
    if args.page_size is None:
        # Larger pages need Triton in SGLang's allocator.
        filled["page_size"] = 1
    if args.max_running_requests is None:
        filled["max_running_requests"] = CPU_MAX_RUNNING_REQUESTS
    if args.mem_fraction_static is None:
        # Only an upper bound here: the number of tokens below decides.
        filled["mem_fraction_static"] = 0.9
    if args.max_total_tokens is None:
        # A STANDALONE draft has as many layers of its own as it has; an EAGLE head's one hardly counts.
        models = [args.model_path]
        if args.speculative_algorithm == "STANDALONE":
            models.append(args.speculative_draft_model_path or "")
        tokens = _kv_tokens_that_fit(models, 2 if filled.get("dtype", args.dtype) == "bfloat16" else 4)
        filled["max_total_tokens"] = min(tokens, CPU_MAX_KV_TOKENS) if tokens else CPU_MAX_KV_TOKENS
    if args.speculative_algorithm and args.speculative_num_steps is None and not args.speculative_adaptive:
        # SGLang would choose a tree for Llama; the CPU engine verifies chains.
        filled.update(speculative_num_steps=3, speculative_eagle_topk=1, speculative_num_draft_tokens=4)
    # There are no graphs on a CPU, but --speculative-adaptive tries to build them unless they are off.
    filled["disable_cuda_graph"] = True
    # A CPU has no streams to overlap, and SGLang's overlapped loop counts each token one step late in penalties.
    filled["disable_overlap_schedule"] = True
    return filled


def _for_cuda(args: Any) -> dict[str, Any]:
    import torch

    backends = (args.attention_backend, args.prefill_attention_backend, args.decode_attention_backend)
    if args.speculative_algorithm is None or any(backends) or torch.cuda.get_device_capability()[0] != 9:
        return {}
    # On Hopper SGLang 0.5.17 picks fa3, whose draft-extend it can't capture into a CUDA graph: it would run eagerly at
    # every γ. flashinfer and triton are captured.
    return {"attention_backend": "flashinfer" if importlib.util.find_spec("flashinfer") else "triton"}


def _kv_tokens_that_fit(models: list[str], bytes_per_value: int) -> int | None:
    """How many tokens of all models' KV cache fit into our part of the free memory; None if a config is not local."""
    values = [_kv_values_per_token(Path(model) / "config.json") for model in models]
    if 0 in values:
        return None
    return int(CPU_KV_MEMORY_PART * free_memory_bytes()) // (sum(values) * bytes_per_value)


def _kv_values_per_token(config_file: Path) -> int:
    """0 if there is no such file."""
    if not config_file.is_file():
        return 0
    config = json.loads(config_file.read_text())
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * config["num_hidden_layers"] * heads * head_dim)


def free_memory_bytes() -> int:
    """Memory that a new process can use without swapping, in bytes (MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable line")
