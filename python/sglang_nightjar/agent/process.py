"""Entry points of the processes that SGLang spawns.

A spawned process imports what its target function needs, and nothing else. SGLang's own targets would make it import
``sglang`` unprepared (fatal on a CPU) whenever the user's main module does not import ``sglang_nightjar`` first: in a
REPL, under pytest, in a notebook. These targets live in our package, so unpickling them prepares the process.
They must not import SGLang at module level.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from sglang_nightjar.patches.seams import Seam

SEAMS = (
    Seam(
        "sglang.srt.entrypoints.http_server:launch_server",
        (
            "server_args",
            "init_tokenizer_manager_func",
            "run_scheduler_process_func",
            "run_detokenizer_process_func",
            "execute_warmup_func",
            "launch_callback",
        ),
        "call",
        "to prepare the process that sgl.Runtime starts",
    ),
    Seam("sglang.srt.managers.scheduler:run_scheduler_process", None, "call", "to run a scheduler"),
    Seam("sglang.srt.managers.detokenizer_manager:run_detokenizer_process", None, "call", "to run the detokenizer"),
    Seam(
        "sglang.srt.managers.data_parallel_controller:run_data_parallel_controller_process",
        ("server_args", "port_args", "pipe_writer", "run_scheduler_process_func"),
        "call",
        "to start the schedulers of several replicas",
    ),
)

# "main" is the process of the launcher, Engine or Runtime; "scheduler" is one rank's; "controller" starts the
# schedulers of several replicas and hands requests out among them; "doctor" only looks.
role = "main"


def run_scheduler_process(*args: Any, **kwargs: Any) -> Any:
    """Target of the scheduler processes: SGLang's own, once our hooks are known to be in place."""
    global role
    role = "scheduler"
    from sglang.srt.managers.scheduler import run_scheduler_process as run
    from sglang.srt.plugins import load_plugins

    from sglang_nightjar import plugin

    load_plugins()
    plugin.verify()
    return run(*args, **kwargs)


def run_detokenizer_process(*args: Any, **kwargs: Any) -> Any:
    """Target of the detokenizer process."""
    global role
    role = "detokenizer"
    from sglang.srt.managers.detokenizer_manager import run_detokenizer_process as run

    return run(*args, **kwargs)


def run_data_parallel_controller_process(*args: Any, **kwargs: Any) -> Any:
    """Target of the process that starts the schedulers of several replicas; SGLang loads no plugins in it."""
    global role
    role = "controller"
    from sglang.srt.managers.data_parallel_controller import run_data_parallel_controller_process as run
    from sglang.srt.plugins import load_plugins

    load_plugins()
    return run(*args, **kwargs)


def launch_server(*args: Any, **kwargs: Any) -> None:
    """SGLang's ``http_server.launch_server``, by a name that prepares the process which ``sgl.Runtime`` spawns."""
    import sglang.srt.entrypoints.http_server  # noqa: F401  (its import hook calls install_launch_server)

    _wrapped()(*args, **kwargs)


def install_launch_server(http_server: ModuleType) -> None:
    """Put our ``launch_server`` where SGLang's callers look it up."""
    if http_server.launch_server is not launch_server:
        # The name under which inspect, too, looks for what a function wraps.
        launch_server.__wrapped__ = http_server.launch_server  # type: ignore[attr-defined]
        http_server.launch_server = launch_server  # type: ignore[attr-defined]


def _wrapped() -> Callable[..., None]:
    return launch_server.__wrapped__  # type: ignore[attr-defined]
