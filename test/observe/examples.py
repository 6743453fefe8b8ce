"""Answers as the schedulers and the policy process give them, to build statuses of."""

from typing import Any


def rank(number: int = 0, **changes: Any) -> dict[str, Any]:
    """One scheduler's entry of ``ranks``."""
    return {
        "rank": number,
        "gamma": 3,
        "batch_size": 2,
        "residency": "RESIDENT",
        "plan_id": 17,
        "plan_age_s": 1.5,
        "source": "policy",
        "reason": "batch 1-4: 0 -> 3",
        "iterations": 100,
        "kv": {"used": 100, "capacity": 16384, "base": 16384, "extra": 0},
        "draft": {"device_bytes": 1000, "lag_max": 0},
        "link": {
            "state": "up",
            "sent": 120,
            "dropped": 0,
            "rejected": 1,
            "replayed": 1,
            "connections": 1,
            "round_trip_us": {"p50": 800.0, "p99": 4000.0},
        },
        "overhead_us": {"p50": 12.0, "p99": 30.0},
        "seconds_by_gamma": {"0": 1.5, "3": 2.5},
        "draft_tokens": {"proposed": 300, "accepted": 120, "verified": 180},
        "switches": [{"from": 0, "to": 3, "source": "policy", "reason": "plan", "count": 2}],
        "counters": {
            "gamma_switches": 2,
            "fallbacks": 1,
            "offloads": 3,
            "reloads": 2,
            "residency_failures": 1,
            "refused_growths": 1,
            "moved_tokens": 40,
            "errors": 0,
        },
        **changes,
    }


def policy(name: str = "static", **changes: Any) -> dict[str, Any]:
    """The ``policy`` of the policy process' status."""
    return {
        "name": name,
        "version": "1",
        "params": {"gamma": 3},
        "path": None,
        "state": "running",
        "error": "",
        "since_s": 10.0,
        "records": 5,
        "plans": 1,
        "estimates": {"pool": {"1-4": {"0": 5e6, "3": 4e6}}},
        "estimates_of": "ns per token",
        **changes,
    }


def answer(name: str = "static") -> dict[str, Any]:
    """The policy process' answer to ``status``."""
    return {
        "policy": policy(name),
        "shadow": [policy("ema")],
        "agents": [],
        "counters": {"policy_swaps": 4, "policy_restarts": 1, "policy_errors": 2},
    }
