"""The profile of a pair of models on a machine, as a JSON file in the cache directory."""

import dataclasses
import hashlib
import json
import logging
import math
import os
import threading
from pathlib import Path
from typing import Any

from sglang_nightjar.cache import cache_dir
from sglang_nightjar.core.switch_costs import SwitchCosts

logger = logging.getLogger(__name__)

#: (target, draft, hardware, tp_size), as `core.messages.Hello.pool`.
Key = tuple[str, str, str, int]
#: By step (`draft.step_times.STEPS`): ``ms`` until it is done, ``busy_ms`` of it on the scheduler's thread.
Steps = dict[str, dict[str, float]]

#: Threads of one process write to one file.
_writing = threading.Lock()


def path_of(key: Key) -> Path:
    """Where the profile of ``key`` is, or would be."""
    return cache_dir() / "profiles" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"


def save(key: Key, costs: SwitchCosts) -> Path:
    """Write what returns cost into the profile; several processes may. Raises OSError."""
    return _write(key, switch_costs=dataclasses.asdict(costs))


def save_steps(key: Key, steps: Steps) -> None:
    """Write how long the draft's way out and back takes into the profile; a disk that is full is only told of."""
    try:
        _write(key, steps=steps)
    except OSError as error:
        logger.warning("Nightjar: the profile could not be written: %s", error)


def load(key: Key) -> SwitchCosts:
    """The costs in the profile of ``key``; such that say nothing if there is none, or none that can be read."""
    try:
        found = {name: float(value) for name, value in _read(key).get("switch_costs", {}).items()}
        costs = SwitchCosts(**found)
        if not all(0 <= value < math.inf for value in found.values()) or (costs.weight > 0) != (costs.x > 0):
            raise ValueError(f"switch_costs {found}")
        return costs
    except (ValueError, TypeError, AttributeError) as error:
        _warn(key, error)
        return SwitchCosts()


def load_steps(key: Key) -> Steps:
    """The steps' times in the profile of ``key``; empty if there are none, or none that can be read."""
    try:
        found = _read(key).get("steps", {})
        return {str(step): {name: float(times[name]) for name in ("ms", "busy_ms")} for step, times in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _warn(key, error)
        return {}


def _read(key: Key) -> dict[str, Any]:
    try:
        content = json.loads(path_of(key).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _warn(key, error)
        return {}
    return content if isinstance(content, dict) else {}


def _write(key: Key, **parts: Any) -> Path:
    """Replace ``parts`` of the profile, and keep the others."""
    path = path_of(key)
    with _writing:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({**_read(key), "of": list(key), **parts}, indent=1) + "\n")
        fresh.replace(path)
    return path


def _warn(key: Key, error: Exception) -> None:
    logger.warning("Nightjar: the profile %s can't be read (%s); run `nightjar profile` again", path_of(key), error)
