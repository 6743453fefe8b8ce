"""``GET /nightjar/status``: one JSON object, from the schedulers, the policy process and its supervisor."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sglang_nightjar.version import __version__

State = Literal["running", "restarting", "down"]

#: Counters of the schedulers, summed over ranks; the others come from the policy process and its supervisor.
RANK_COUNTERS = ("gamma_switches", "offloads", "reloads", "fallbacks")


@dataclass(frozen=True)
class PolicySide:
    """What is known about the policy process.

    Attributes:
        state: ``running`` if it answered, ``restarting`` if it will be started again, else ``down``.
        answer: its own status; empty unless it answered.
        wanted: name or path of the policy that this server was started with.
        detail: why it is not running, or why there is none; a clause, "" if there is nothing to say.
        endpoint: where it is; "" if there is none.
        restarts: how often this server started it again.
    """

    state: State
    answer: dict[str, Any] = field(default_factory=dict)
    wanted: str = ""
    detail: str = ""
    endpoint: str = ""
    restarts: int = 0


def build(policy: PolicySide, internal_states: Sequence[dict[str, Any]], trouble: str = "") -> dict[str, Any]:
    """The status object (docs/metrics.md lists its keys).

    ``internal_states`` are those of the schedulers; what Nightjar adds to each is under ``nightjar``. ``trouble`` says
    why they are missing, if they are.
    """
    in_charge = policy.answer.get("policy", {})
    ranks = [state["nightjar"] for state in internal_states if isinstance(state.get("nightjar"), dict)]
    counters = {name: sum(rank.get("counters", {}).get(name, 0) for rank in ranks) for name in RANK_COUNTERS}
    of_process = policy.answer.get("counters", {})
    counters |= {name: of_process.get(name, 0) for name in ("policy_swaps", "log_dropped")}
    # The process that this server started, and the policy inside it.
    counters["policy_restarts"] = policy.restarts + of_process.get("policy_restarts", 0)
    return {
        "version": __version__,
        "sglang_version": importlib.metadata.version("sglang"),
        "policy": {
            "name": in_charge.get("name", policy.wanted),
            "version": in_charge.get("version", ""),
            "params": in_charge.get("params", {}),
            "path": in_charge.get("path"),
            "state": in_charge.get("state", policy.state),
            "detail": in_charge.get("error", "") or policy.detail,
            "endpoint": policy.endpoint,
        },
        "shadow": [shadow["name"] for shadow in policy.answer.get("shadow", [])],
        "ranks": ranks,
        "ranks_detail": trouble or ("" if ranks else policy.detail),
        "counters": counters,
        "config": policy.answer.get("config", {}),
        "log": policy.answer.get("log", {}),
    }
