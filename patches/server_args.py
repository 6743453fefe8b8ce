"""srt/server_args.py, SGLang 0.5.17: fill in what this machine's engine needs, before SGLang resolves the rest.

This is the one place that the launcher, ``sglang.Engine`` and ``sglang.Runtime`` all pass through.
"""

import logging
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar import defaults, plugin, preflight
from sglang_nightjar.agent import settings
from sglang_nightjar.cpu.detect import choose_engine
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.patches.seams import Seam

logger = logging.getLogger(__name__)

ROLES = ("main",)

_CLASS = "sglang.srt.server_args:ServerArgs"
_FIELDS = (
    "attention_backend",
    "decode_attention_backend",
    "device",
    "disable_cuda_graph",
    "dtype",
    "max_running_requests",
    "max_total_tokens",
    "mem_fraction_static",
    "model_path",
    "page_size",
    "pp_size",
    "prefill_attention_backend",
    "quantization",
    "sleep_on_idle",
    "speculative_adaptive",
    "speculative_adaptive_config",
    "speculative_algorithm",
    "speculative_draft_model_path",
    "speculative_eagle_topk",
    "speculative_num_draft_tokens",
    "speculative_num_steps",
    "tp_size",
)

SEAMS = (
    Seam(f"{_CLASS}.__post_init__", (), "hook", "to fill in the settings that this machine needs"),
    *(Seam(f"{_CLASS}.{field}", None, "field", "to see and fill in this setting") for field in _FIELDS),
)


def fill_in(server_args: Any) -> None:
    plugin.verify()
    choice = choose_engine()
    if choice.is_cpu:
        if server_args.device not in (None, "cpu"):
            raise ConfigError(f"device={server_args.device!r} can't be used: {choice.reason}")
        preflight.check_cpu(server_args)
    # First, because the engine's defaults settle a γ for good where nothing will choose one.
    for name, value in defaults.for_steering(settings.load(), server_args).items():
        setattr(server_args, name, value)
    for name, value in defaults.for_engine(choice, server_args).items():
        setattr(server_args, name, value)


def apply() -> None:
    HookRegistry.register("sglang.srt.server_args.ServerArgs.__post_init__", fill_in, HookType.BEFORE)
