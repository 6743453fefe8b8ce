"""What a scheduler says of its draft's memory in ``GET /nightjar/status`` and in its hello: plain JSON types only."""

from typing import Any

from sglang_nightjar.draft import capacity, residency, upkeep


def kv_tokens(scheduler: Any) -> tuple[int, int]:
    """Tokens of KV cache with the draft on the device, and those that its memory would add."""
    driver = residency.current
    if driver is None:
        return capacity.current(scheduler), 0
    return driver.pool.base_tokens, driver.extra_tokens


def memory(scheduler: Any, draft_bytes: int) -> dict[str, Any]:
    """Parts ``residency``, ``kv``, ``draft`` and ``counters`` of a rank's entry; ``draft_bytes`` are its weights."""
    driver = residency.current
    tokens = capacity.current(scheduler)
    kept_up = upkeep.current.status() if upkeep.current is not None else {"lag_max": 0}
    if driver is None:
        return {
            "residency": "RESIDENT",
            "kv": {"capacity": tokens, "base": tokens, "extra": 0, "gain": 0},
            "draft": {
                "device_bytes": draft_bytes,
                "host_bytes": 0,
                "reclaim": "nothing",
                "freed_bytes": 0,
                "stays": residency.why_not,
                "steps": {},
                **kept_up,
            },
            "counters": {"offloads": 0, "reloads": 0, "residency_failures": 0, "refused_growths": 0, "moved_tokens": 0},
        }
    machine, base = driver.machine, driver.pool.base_tokens
    return {
        "residency": machine.state.name,
        "kv": {"capacity": tokens, "base": base, "extra": tokens - base, "gain": driver.extra_tokens},
        "draft": {
            "device_bytes": driver.weights.device_bytes,
            "host_bytes": driver.weights.nbytes,
            "reclaim": "weights" if driver.kv is None else "weights+kv",
            "freed_bytes": driver.freed_bytes,
            "kv_device_bytes": driver.kv.device_bytes if driver.kv is not None else None,
            "kv_stays": driver.kv_stays,
            "stays": "",
            "why": machine.reason,
            "steps": driver.times.table(),
            **kept_up,
        },
        "counters": {
            "offloads": machine.offloads,
            "reloads": machine.reloads,
            "residency_failures": machine.failures,
            "refused_growths": driver.refused_growths,
            "moved_tokens": driver.tail.moved_tokens,
        },
    }
