"""The servers that come with Nightjar: the demo pair as it was measured, and hardware from its data sheets."""

from __future__ import annotations

from pathlib import Path

from sglang_nightjar.errors import ConfigError
from sglang_nightjar.sim import hardware
from sglang_nightjar.sim.setup import Setup

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """All of them."""
    return [*sorted(file.stem for file in _FOLDER.glob("*.yaml")), *hardware.names()]


def builtin(name: str) -> Setup:
    """One of `names`. Raises ConfigError."""
    if name in hardware.names():
        return hardware.planned(name)
    if name not in names():
        raise ConfigError(f"server {name!r} must be a YAML file or one of {', '.join(names())}")
    return Setup.load(_FOLDER / f"{name}.yaml")


def find(text: str) -> Setup:
    """A built-in server, or the one in a file. Raises ConfigError."""
    return Setup.load(Path(text)) if text.endswith((".yaml", ".yml")) else builtin(text)
