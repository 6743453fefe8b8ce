"""Which code a run was made with: what the policies, what they share, the simulator and the loads say."""

import ast
import hashlib
from pathlib import Path

import sglang_nightjar.core
import sglang_nightjar.policies
import sglang_nightjar.sim

_SUITE = Path(__file__).parent / "suite.py"


def fingerprint(folders: tuple[Path, ...] | None = None) -> str:
    """12 hex digits; comments and layout don't count, docstrings do. ``folders``: default, those of the package."""
    if folders is None:
        folders = tuple(
            Path(module.__path__[0]) for module in (sglang_nightjar.policies, sglang_nightjar.core, sglang_nightjar.sim)
        )
    files = [file for folder in folders for file in sorted(folder.iterdir()) if file.suffix in (".py", ".yaml")]
    found = hashlib.sha256()
    for file in (*files, _SUITE):
        text = file.read_text(encoding="utf-8")
        found.update(file.name.encode())
        found.update((ast.dump(ast.parse(text)) if file.suffix == ".py" else text).encode())
    return found.hexdigest()[:12]
