"""Entry points of the processes that SGLang spawns.

A spawned process imports what its target function needs, and nothing else. SGLang's own targets would make it import
``sglang`` unprepared (fatal on a CPU) whenever the user's main module does not import ``sglang_nightjar`` first: in a
REPL, under pytest, in a notebook. These targets live in our package, so unpickling them prepares the process.
They must not import SGLang at module level.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

_sglang_launch_server: Callable[..., None] | None = None

# "main" is the process of the launcher, Engine or Runtime; "scheduler" is one rank's.
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


def launch_server(*args: Any, **kwargs: Any) -> None:
    """SGLang's ``http_server.launch_server``, by a name that prepares the process which ``sgl.Runtime`` spawns."""
    import sglang.srt.entrypoints.http_server  # noqa: F401  (its import hook calls install_launch_server)

    assert _sglang_launch_server is not None
    _sglang_launch_server(*args, **kwargs)


def install_launch_server(http_server: ModuleType) -> None:
    """Put our ``launch_server`` where SGLang's callers look it up."""
    global _sglang_launch_server
    if http_server.launch_server is not launch_server:
        _sglang_launch_server = http_server.launch_server
        http_server.launch_server = launch_server  # type: ignore[attr-defined]
