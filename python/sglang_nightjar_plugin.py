"""What SGLang's plugin loader finds. It stands outside the package because importing the package turns Nightjar on."""

import os


def load() -> None:
    """Load Nightjar's plugin if this process was asked to (see sglang_nightjar/activation.py)."""
    if os.environ.get("NIGHTJAR_ACTIVE") == "1":
        from sglang_nightjar import plugin

        plugin.load()
