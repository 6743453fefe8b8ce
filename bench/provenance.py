"""What every result says of where it came from, so that a figure can be made again."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def provenance(**extra: Any) -> dict[str, Any]:
    """Commit, versions, machine and command of this process; `extra` (seed, settings) is added as it is."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": " ".join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("torch", "sglang")}},
        "machine": {
            "cpu": _cpu_model(),
            "vector": [f for f in ("avx2", "avx512f", "amx_bf16") if f in _cpu_flags()],
            "cores": len(os.sched_getaffinity(0)),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        },
        **extra,
    }


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What a command was asked for, as JSON can have it."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _cpu_info(key: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _cpu_model() -> str:
    return _cpu_info("model name") or platform.machine()


def _cpu_flags() -> set[str]:
    return set(_cpu_info("flags").split())
