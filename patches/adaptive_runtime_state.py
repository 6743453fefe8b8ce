"""speculative/adaptive_runtime_state.py and its neighbours, SGLang 0.5.17: γ is chosen by Nightjar's agent.

SGLang's adaptive layer builds what each γ needs (attention backends, CUDA graphs) and switches between them; its own
rule, which looks at accepted lengths only, is replaced by ours. The candidates come as the JSON text itself in
``speculative_adaptive_config``, where SGLang expects a path: a text travels with the server's arguments to all
processes, a file would have to outlive the start.

SGLang switches with EAGLE and EAGLE-3 alone. Its STANDALONE worker inherits all that switching needs but the controller
(patches/standalone_worker_v2.py makes it), so where γ is ours to choose that is no reason against it.
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
_WHY_NOT = "sglang.srt.speculative.adaptive_spec_params:adaptive_unsupported_reason"
_WORKER_LOG = "sglang.srt.speculative.eagle_worker_v2"

SEAMS = (
    Seam(_INIT, ("worker", "config_path"), "hook", "to choose γ"),
    Seam(_LOAD, ("cfg_path",), "hook", "to read the candidates from the arguments themselves"),
    Seam(_WHY_NOT, ("server_args",), "hook", "or γ can't change with a STANDALONE draft"),
)


def install_selector(_result: None, controller: Any, worker: Any, config_path: str | None = None) -> None:
    if (given := candidates.parse(config_path)) is not None:
        controller.params = GammaSelector(given.gammas, given.fallback)


def load_inline(original: Callable[..., Any], cfg_path: str | None) -> Any:
    if candidates.parse(cfg_path) is None:
        return original(cfg_path)
    config = json.loads(cfg_path)  # type: ignore[arg-type]
    return config, {int(size): entry for size, entry in config.items() if size.isdigit()}


def allow_standalone(original: Callable[[Any], str | None], server_args: Any) -> str | None:
    """`defaults.for_steering` set the candidates only where nothing else speaks against it."""
    if server_args.speculative_algorithm == "STANDALONE" and candidates.parse(server_args.speculative_adaptive_config):
        return None
    return original(server_args)


def is_no_switch(record: logging.LogRecord) -> bool:
    """SGLang logs every single switch of γ; `agent.regimes` logs when the regime changes."""
    return not record.getMessage().startswith("Switch adaptive runtime state")


def apply() -> None:
    HookRegistry.register(_INIT.replace(":", "."), install_selector, HookType.AFTER)
    HookRegistry.register(_LOAD.replace(":", "."), load_inline, HookType.AROUND)
    HookRegistry.register(_WHY_NOT.replace(":", "."), allow_standalone, HookType.AROUND)
    logging.getLogger(_WORKER_LOG).addFilter(is_no_switch)
