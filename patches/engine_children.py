"""entrypoints/engine.py, SGLang 0.5.17: start child processes through ``sglang_nightjar.agent.process``.

Schedulers and detokenizers are spawned, so nothing that the parent prepared exists in them; SGLang's plugins come too
late, because ``sgl_kernel`` is imported with SGLang itself. Our functions prepare the process first and are named by
module, so this holds for the launcher, ``sglang.Engine``, pytest and a REPL alike.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.agent import process
from sglang_nightjar.patches.seams import Seam

_ENGINE = "sglang.srt.entrypoints.engine"

ROLES = ("main",)

SEAMS = (
    Seam(
        f"{_ENGINE}:Engine._launch_scheduler_processes",
        ("server_args", "port_args", "run_scheduler_process_func"),
        "hook",
        "schedulers would start without the CPU engine",
    ),
    Seam(
        f"{_ENGINE}:run_data_parallel_controller_process",
        None,
        "field",
        "the schedulers of several replicas would start without the CPU engine",
    ),
    Seam(
        f"{_ENGINE}:Engine._launch_detokenizer_subprocesses",
        ("server_args", "port_args", "run_detokenizer_process_func"),
        "hook",
        "the detokenizer would start without the CPU engine",
    ),
)


def launch_schedulers(
    original: Callable[..., Any],
    cls: Any,
    server_args: Any,
    port_args: Any,
    run_scheduler_process_func: Callable[..., Any],
) -> Any:
    from sglang.srt.entrypoints import engine
    from sglang.srt.managers.scheduler import run_scheduler_process

    if run_scheduler_process_func is run_scheduler_process:
        run_scheduler_process_func = process.run_scheduler_process
    # SGLang takes this target from its module.
    engine.run_data_parallel_controller_process = process.run_data_parallel_controller_process
    return original(cls, server_args, port_args, run_scheduler_process_func)


def launch_detokenizers(
    original: Callable[..., Any],
    cls: Any,
    server_args: Any,
    port_args: Any,
    run_detokenizer_process_func: Callable[..., Any],
) -> Any:
    from sglang.srt.managers.detokenizer_manager import run_detokenizer_process

    if run_detokenizer_process_func is run_detokenizer_process:
        run_detokenizer_process_func = process.run_detokenizer_process
    return original(cls, server_args, port_args, run_detokenizer_process_func)


def apply() -> None:
    for name, hook in (
        ("_launch_scheduler_processes", launch_schedulers),
        ("_launch_detokenizer_subprocesses", launch_detokenizers),
    ):
        HookRegistry.register(f"{_ENGINE}.Engine.{name}", hook, HookType.AROUND)
