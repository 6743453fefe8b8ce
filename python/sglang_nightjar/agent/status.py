"""What a scheduler says about itself in ``GET /nightjar/status``: its entry of ``ranks``, of plain JSON types only."""

import time
from typing import Any

from sglang_nightjar.agent.durations import Durations
from sglang_nightjar.agent.scheduler_agent import SchedulerAgent
from sglang_nightjar.draft import status as draft_status

#: The key in SGLang's internal state under which the entry is.
KEY = "nightjar"


def rank_status(agent: SchedulerAgent) -> dict[str, Any]:
    """The entry of ``agent``'s rank. docs/metrics.md lists the fields."""
    decision = agent.selector.decision
    last = agent.collector.last
    totals = agent.collector.totals
    memory = draft_status.memory(agent.scheduler, agent.draft_bytes)
    return {
        "rank": agent.place.dp_rank,
        "gamma": last.gamma if last else agent.selector.fallback_gamma,
        "batch_size": last.batch_size if last else 0,
        "residency": memory["residency"],
        "plan_id": decision.plan_id,
        "plan_age_s": round((time.monotonic_ns() - decision.received_ns) / 1e9, 3) if decision.received_ns else 0.0,
        "source": decision.source,
        "reason": decision.reason,
        "candidates": list(agent.selector.candidates),
        "fallback_gamma": agent.selector.fallback_gamma,
        "iterations": totals.iterations,
        "kv": {"used": last.kv_used if last else 0, **memory["kv"]},
        "draft": memory["draft"],
        "link": _link(agent),
        "overhead_us": _microseconds(agent.collector.overhead),
        "seconds_by_gamma": {str(gamma): ns / 1e9 for gamma, ns in sorted(totals.time_ns_by_gamma.copy().items())},
        "draft_tokens": {"verified": totals.verified, "proposed": totals.proposed, "accepted": totals.accepted},
        "switches": [
            {"from": before, "to": after, "source": source, "reason": reason, "count": count}
            for (before, after, source, reason), count in sorted(agent.regimes.switches.copy().items())
        ],
        "counters": {
            "gamma_switches": agent.regimes.total,
            "fallbacks": agent.steering.fallbacks if agent.steering else 0,
            **memory["counters"],
            "retractions": totals.retractions,
            "errors": agent.errors,
        },
    }


def _link(agent: SchedulerAgent) -> dict[str, Any]:
    client = agent.client
    if client is None or agent.steering is None:
        return {"state": "none", "sent": 0, "dropped": 0, "rejected": 0, "replayed": 0, "connections": 0}
    return {
        "state": client.state.value,
        "sent": client.link.sent,
        "dropped": client.dropped,
        "rejected": client.rejected,
        "replayed": client.replayed,
        "connections": client.link.connections,
        "round_trip_us": _microseconds(agent.steering.round_trips),
    }


def _microseconds(durations: Durations) -> dict[str, float]:
    found = durations.percentiles()
    return {"p50": round(found.p50, 1), "p99": round(found.p99, 1)}
