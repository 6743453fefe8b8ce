"""The demo pair: what is served when the user names no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .target import ensure_target, sha256


@dataclass(frozen=True)
class DemoPair:
    """Folders of two checkpoints that SGLang loads."""

    target: Path
    draft: Path


def draft_dir() -> Path:
    """The draft head that ships with the package."""
    return Path(__file__).parent / "draft"


def draft_damage() -> list[str]:
    """The draft's files whose checksum is not the one in its ``SHA256SUMS``; a missing file counts."""
    folder, bad = draft_dir(), []
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split()
        if not (folder / name).is_file() or sha256(folder / name) != expected:
            bad.append(str(folder / name))
    return bad


def ensure_pair(say=print) -> DemoPair:
    """The demo pair, converted on first use. Raises ConfigError with what to do if it can't be had."""
    return DemoPair(target=ensure_target(say), draft=draft_dir())
