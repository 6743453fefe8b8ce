"""The demo pair: what is served when the user names no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .target import ensure_target


@dataclass(frozen=True)
class DemoPair:
    """Folders of two checkpoints that SGLang loads."""

    target: Path
    draft: Path


def draft_dir() -> Path:
    """The draft head that ships with the package."""
    return Path(__file__).parent / "draft"


def ensure_pair(say=print) -> DemoPair:
    """The demo pair, converted on first use. Raises ConfigError with what to do if it can't be had."""
    return DemoPair(target=ensure_target(say), draft=draft_dir())
