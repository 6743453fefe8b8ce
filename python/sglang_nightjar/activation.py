"""Nightjar is on only where it was asked for: by our launcher, or by ``import sglang_nightjar``.

Installing the package must not change plain SGLang, yet SGLang loads our plugin in every one of its processes. An
environment variable, which children inherit, tells the plugin whether it was asked for.
"""

import os
import warnings
from types import ModuleType

from sglang_nightjar.importhook import after_import, before_import

ACTIVE_ENV = "NIGHTJAR_ACTIVE"


def activate() -> None:
    """Turn Nightjar on in this process and in every process that it starts. Calling it again does nothing more."""
    os.environ[ACTIVE_ENV] = "1"
    before_import("sglang", _prepare_process)
    after_import("sglang.srt.entrypoints.http_server", _hook_server_entry)


def _prepare_process() -> None:
    from sglang_nightjar.cpu.bootstrap import prepare_process

    if prepare_process().is_cpu:
        # Otherwise a crash ends only after a minute of waiting for a CUDA core dump.
        os.environ.setdefault("SGLANG_CUDA_COREDUMP_BEFORE_CRASH", "0")
        # SGLang warns in every process about GPU formats that nobody asked for.
        warnings.filterwarnings("ignore", message="Triton is not supported|Only CUDA,", module="sglang")


def _hook_server_entry(http_server: ModuleType) -> None:
    """``sgl.Runtime`` never loads plugins itself, but it imports this module before it builds its ServerArgs."""
    from sglang.srt.plugins import load_plugins

    from sglang_nightjar import plugin
    from sglang_nightjar.agent import process

    if process.role == "main":
        load_plugins()
        process.install_launch_server(http_server)
        plugin.load_for_http_server()
