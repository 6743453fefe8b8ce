"""The profile of a pair of models on a machine, as a JSON file in the cache directory."""

import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path

from sglang_nightjar.cache import cache_dir
from sglang_nightjar.core.switch_costs import SwitchCosts

logger = logging.getLogger(__name__)

#: (target, draft, hardware, tp_size), as `core.messages.Hello.pool`.
Key = tuple[str, str, str, int]


def path_of(key: Key) -> Path:
    """Where the profile of ``key`` is, or would be."""
    return cache_dir() / "profiles" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"


def save(key: Key, costs: SwitchCosts) -> Path:
    """Write the profile; several processes may. Raises OSError."""
    path = path_of(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"of": list(key), "switch_costs": dataclasses.asdict(costs)}
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(content, indent=1) + "\n")
    fresh.replace(path)
    return path


def load(key: Key) -> SwitchCosts:
    """The profile of ``key``; one that says nothing if there is none, or none that can be read."""
    path = path_of(key)
    try:
        content = json.loads(path.read_text())
        return SwitchCosts(**{name: float(value) for name, value in content["switch_costs"].items()})
    except FileNotFoundError:
        return SwitchCosts()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("Nightjar: the profile %s can't be read (%s); run `nightjar profile` again", path, error)
        return SwitchCosts()
