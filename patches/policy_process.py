"""entrypoints/engine.py, SGLang 0.5.17: the policy process starts before the schedulers and ends before the rest.

``_launch_subprocesses`` is what the launcher, ``sglang.Engine`` and the process of ``sglang.Runtime`` all call, and the
environment that it leaves is what the schedulers inherit. ``Engine.shutdown`` kills every child of the program: ours
must be stopped before, or its supervisor would start it again.
"""

from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.agent import candidates
from sglang_nightjar.patches.seams import Seam
from sglang_nightjar.supervise import policy_process

ROLES = ("main",)

_ENGINE = "sglang.srt.entrypoints.engine"

SEAMS = (
    Seam(
        f"{_ENGINE}:Engine._launch_subprocesses",
        (
            "server_args",
            "init_tokenizer_manager_func",
            "run_scheduler_process_func",
            "run_detokenizer_process_func",
            "port_args",
        ),
        "hook",
        "to start the policy process, and to tell the schedulers where it is",
    ),
    Seam(f"{_ENGINE}:Engine.shutdown", (), "hook", "to end the policy process with the engine"),
    *(
        Seam(f"sglang.srt.server_args:ServerArgs.{field}", None, "field", "to see whether there is something to choose")
        for field in ("node_rank", "speculative_adaptive", "speculative_adaptive_config", "speculative_algorithm")
    ),
)


def start(_cls: Any, server_args: Any, *_args: Any, **_kwargs: Any) -> None:
    # The schedulers that decide are all on the first node; the others apply what these broadcast.
    if server_args.node_rank == 0:
        policy_process.start(_obstacle(server_args))


def _obstacle(server_args: Any) -> str:
    """Why γ can't be chosen on this server; "" if it can."""
    if server_args.speculative_algorithm is None:
        return "this server does not speculate, so there is nothing to choose"
    if not server_args.speculative_adaptive:
        return "with these settings SGLang can't change γ while it runs"
    if candidates.parse(server_args.speculative_adaptive_config) is None:
        return "γ is left to SGLang's own --speculative-adaptive"
    return ""


def stop(_engine: Any) -> None:
    policy_process.stop()


def apply() -> None:
    HookRegistry.register(f"{_ENGINE}.Engine._launch_subprocesses", start, HookType.BEFORE)
    HookRegistry.register(f"{_ENGINE}.Engine.shutdown", stop, HookType.BEFORE)
