"""Where Nightjar keeps what it made for this user: converted models, compiled kernels, training runs."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$NIGHTJAR_CACHE``, else ``$XDG_CACHE_HOME/sglang_nightjar``, else ``~/.cache/sglang_nightjar``; not created."""
    if own := os.environ.get("NIGHTJAR_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sglang_nightjar"
