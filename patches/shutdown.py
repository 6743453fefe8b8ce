"""managers/tokenizer_manager.py, SGLang 0.5.17: end cleanly on SIGTERM, as on Ctrl-C.

SGLang's own handler notices the signal only every five seconds, keeps accepting requests while it drains, and ends by
killing itself with SIGKILL, so the exit code is 137. uvicorn does better on SIGINT: it stops listening, finishes the
requests that are running, and returns to the launcher, which stops the children and exits 0.
"""

import logging
import signal
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.patches.seams import Seam

logger = logging.getLogger(__name__)

ROLES = ("main",)

SEAMS = (
    Seam(
        "sglang.srt.managers.tokenizer_manager:SignalHandler.sigterm_handler",
        ("signum", "frame"),
        "hook",
        "to stop listening, finish running requests and exit 0 on SIGTERM",
    ),
)

# Set by our launcher, which can end on SIGINT; in a program that embeds an Engine nothing changes.
in_launcher = False

# True once SIGTERM arrived: the launcher tells it from Ctrl-C by this.
terminated = False


def end_like_ctrl_c(original: Any, handler: Any, signum: int | None = None, frame: Any = None) -> None:
    global terminated
    if not in_launcher:
        original(handler, signum, frame)
        return
    terminated = True
    logger.info("SIGTERM received: finishing the requests that are running, then shutting down.")
    signal.raise_signal(signal.SIGINT)


def apply() -> None:
    HookRegistry.register(
        "sglang.srt.managers.tokenizer_manager.SignalHandler.sigterm_handler", end_like_ctrl_c, HookType.AROUND
    )
