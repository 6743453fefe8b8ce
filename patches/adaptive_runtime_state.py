"""speculative/adaptive_runtime_state.py and its neighbours, SGLang 0.5.17: γ is chosen by Nightjar's agent.

SGLang's adaptive layer builds what each γ needs (attention backends, CUDA graphs) and switches between them; its own
rule, which looks at accepted lengths only, is replaced by ours. The candidates come as the JSON text itself in
``speculative_adaptive_config``, where SGLang expects a path: a text travels with the server's arguments to all
processes, a file would have to outlive the start.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.agent import candidates
from sglang_nightjar.agent.selector import GammaSelector
from sglang_nightjar.patches.seams import Seam

_INIT = "sglang.srt.speculative.adaptive_runtime_state:AdaptiveController.__init__"
_LOAD = "sglang.srt.speculative.adaptive_spec_params:_load_adaptive_config"
_WORKER_LOG = "sglang.srt.speculative.eagle_worker_v2"

SEAMS = (
    Seam(_INIT, ("worker", "config_path"), "hook", "to choose γ"),
    Seam(_LOAD, ("cfg_path",), "hook", "to read the candidates from the arguments themselves"),
)


def install_selector(_result: None, controller: Any, worker: Any, config_path: str | None = None) -> None:
    if (given := candidates.parse(config_path)) is not None:
        controller.params = GammaSelector(given.gammas, given.fallback)


def load_inline(original: Callable[..., Any], cfg_path: str | None) -> Any:
    if candidates.parse(cfg_path) is None:
        return original(cfg_path)
    config = json.loads(cfg_path)  # type: ignore[arg-type]
    return config, {int(size): entry for size, entry in config.items() if size.isdigit()}


def is_no_switch(record: logging.LogRecord) -> bool:
    """SGLang logs every single switch of γ; `agent.regimes` logs when the regime changes."""
    return not record.getMessage().startswith("Switch adaptive runtime state")


def apply() -> None:
    HookRegistry.register(_INIT.replace(":", "."), install_selector, HookType.AFTER)
    HookRegistry.register(_LOAD.replace(":", "."), load_inline, HookType.AROUND)
    logging.getLogger(_WORKER_LOG).addFilter(is_no_switch)
