"""managers/scheduler_components/request_receiver.py, SGLang 0.5.17: plans travel with the requests.

Only one rank of a TP group receives requests; it broadcasts them in every iteration, also if there are none. What we
append there reaches all ranks in the same iteration, before they choose the next batch, without a collective of ours.
"""

from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.agent import scheduler_agent
from sglang_nightjar.patches.seams import Seam

ROLES = ("scheduler",)

_TARGET = "sglang.srt.managers.scheduler_components.request_receiver:SchedulerRequestReceiver._pull_raw_reqs"

SEAMS = (Seam(_TARGET, (), "hook", "to hand plans to all ranks in the same iteration"),)


def append_decision(requests: list[Any] | None, _receiver: Any) -> None:
    if (agent := scheduler_agent.current) is not None:
        agent.guarded(agent.after_pull, requests)


def apply() -> None:
    HookRegistry.register(_TARGET.replace(":", "."), append_decision, HookType.AFTER)
