"""Nightjar inside one SGLang process: check the names we rely on, apply the patches, make sure that they took."""

import logging
import os

from sglang_nightjar.agent import process
from sglang_nightjar.config import STRICT_ENV
from sglang_nightjar.patches import seams

logger = logging.getLogger(__name__)

SEAMS = (
    seams.Seam("sglang.srt.plugins:load_plugins", (), "call", "to load the plugin where SGLang does not"),
    seams.Seam(
        "sglang.srt.plugins.hook_registry:HookRegistry.register",
        ("target", "hook", "hook_type", "source"),
        "call",
        "to register our hooks",
    ),
    seams.Seam(
        "sglang.srt.plugins.hook_registry:HookRegistry.apply_hooks", (), "call", "to apply hooks that come late"
    ),
    seams.Seam("sglang.srt.plugins.hook_registry:HookRegistry._patched", None, "field", "to see that a hook took"),
)

# Hook targets that the patches applied in this process must have reached.
_expected: set[str] = set()

# True if a broken name made this process go on as plain SGLang.
_plain = False


def load() -> None:
    """Apply the patches meant for this process; called by SGLang's ``load_plugins``.

    If a name that we rely on is missing or has another signature, the process goes on as plain SGLang, or exits with
    the report if ``--nightjar-strict`` was given or if SGLang can't serve this machine without Nightjar (CPU engine).
    """
    _load(process.role)


def load_for_http_server() -> None:
    """Apply the patches of SGLang's HTTP server, which has just been imported. Like ``load`` if a name is missing."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    if not _plain:
        _load("http")
        HookRegistry.apply_hooks()
        verify()


def _load(role: str) -> None:
    global _plain
    from sglang_nightjar.cpu.detect import choose_engine

    is_cpu = choose_engine().is_cpu
    modules = seams.patch_modules(role, is_cpu)
    used = [*SEAMS, *seams.table(modules)]
    if broken := seams.problems(used):
        _plain = True
        _refuse_or_warn(seams.report(broken), is_cpu)
        return
    for module in modules:
        module.apply()
    _expected.update(seam.dotted for seam in used if seam.kind == "hook")


def verify() -> None:
    """Exit with a clear message if SGLang failed to apply one of our hooks (it only logs that)."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    missing = sorted(_expected - HookRegistry._patched)
    if missing:
        raise SystemExit("Nightjar: SGLang did not apply these hooks, see the traceback above: " + ", ".join(missing))


def _refuse_or_warn(message: str, is_cpu: bool) -> None:
    # load_plugins swallows every Exception; SystemExit is not one, and prints its message.
    if is_cpu:
        raise SystemExit(f"{message}\nPlain SGLang can't serve on this CPU, so the server does not start.")
    if os.environ.get(STRICT_ENV) == "1":
        raise SystemExit(f"{message}\n--nightjar-strict was given, so the server does not start.")
    logger.error("%s\nThe server starts as plain SGLang.", message)
