"""managers/scheduler.py, SGLang 0.5.17: the agent inside the scheduler's loop.

It starts when the scheduler has its workers, applies what came with the requests, and looks at each batch's result once
SGLang has processed it. The scheduler's own method is called in all cases, and an exception of ours stays with us.
"""

import logging
from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.agent import identity, scheduler_agent, settings, status
from sglang_nightjar.agent.decision import Decision
from sglang_nightjar.agent.selector import GammaSelector
from sglang_nightjar.draft import upkeep
from sglang_nightjar.patches.seams import Seam
from sglang_nightjar.profile import store

logger = logging.getLogger(__name__)

ROLES = ("scheduler",)

_CLASS = "sglang.srt.managers.scheduler:Scheduler"
_RETRACT = "sglang.srt.managers.schedule_batch:ScheduleBatch.retract_decode"

SEAMS = (
    Seam(f"{_CLASS}.init_request_dispatcher", (), "hook", "to start the agent, and to let plans reach every rank"),
    Seam(f"{_CLASS}.process_batch_result", ("batch", "result"), "hook", "telemetry after every decode iteration"),
    Seam(f"{_CLASS}.on_idle", (), "hook", "telemetry: time without a batch belongs to no iteration"),
    Seam(f"{_CLASS}.continue_generation", ("recv_req",), "hook", "telemetry: nor does the time of a pause"),
    Seam(f"{_CLASS}.get_internal_state", ("recv_req",), "hook", "GET /nightjar/status"),
    Seam(
        "sglang.srt.managers.schedule_batch:Req.__init__",
        None,
        "call",
        "its spec_num_cap_tokens counts what was proposed",
    ),
    Seam(_RETRACT, ("server_args",), "hook", "to count retractions"),
    Seam(
        "sglang.utils:TypeBasedDispatcher.__iadd__",
        ("other",),
        "call",
        "to dispatch decisions as requests are dispatched",
    ),
)


def start_agent(_result: None, scheduler: Any) -> None:
    from sglang.utils import TypeBasedDispatcher

    given = settings.load()
    if not given.steered:
        return
    controller = getattr(scheduler.draft_worker, "adaptive_controller", None)
    selector = controller.params if controller is not None else None
    if not isinstance(selector, GammaSelector):
        # Nothing to choose from: no draft, or SGLang's own rule was asked for.
        gamma = scheduler.server_args.speculative_num_steps or 0
        selector = GammaSelector((gamma,), gamma)
    elif 0 in selector.candidates:
        if obstacle := upkeep.obstacle(scheduler):
            logger.warning("Nightjar: γ=0 is SGLang's own here, with draft work: %s", obstacle)
        else:
            costs = store.load(identity.pool_of(scheduler.server_args))
            upkeep.current = upkeep.Upkeep(scheduler, selector, given.journal_bytes, costs)
    agent = scheduler_agent.current = scheduler_agent.SchedulerAgent(scheduler, selector, given)
    scheduler._request_dispatcher += TypeBasedDispatcher([(Decision, agent.apply)])


def around_result(original: Callable[..., None], scheduler: Any, batch: Any, result: Any) -> None:
    agent = scheduler_agent.current
    if agent is None:
        original(scheduler, batch, result)
        return
    agent.guarded(agent.before_result, batch, result)
    original(scheduler, batch, result)
    agent.guarded(agent.after_result, batch, result)


def note_idle(_result: None, _scheduler: Any, *_rest: Any, **_named: Any) -> None:
    if (agent := scheduler_agent.current) is not None:
        agent.note_idle()


def add_status(answer: Any, _scheduler: Any, recv_req: Any) -> None:
    if (agent := scheduler_agent.current) is not None:
        answer.internal_state[status.KEY] = status.rank_status(agent)


def count_retractions(answer: tuple[list[Any], float, list[Any]], _batch: Any, server_args: Any) -> None:
    if (agent := scheduler_agent.current) is not None:
        agent.collector.totals.retractions += len(answer[0])


def apply() -> None:
    for name, hook in (
        ("init_request_dispatcher", start_agent),
        ("on_idle", note_idle),
        # Paused, the loop does not come to on_idle.
        ("continue_generation", note_idle),
        ("get_internal_state", add_status),
    ):
        HookRegistry.register(f"{_CLASS.replace(':', '.')}.{name}", hook, HookType.AFTER)
    HookRegistry.register(f"{_CLASS.replace(':', '.')}.process_batch_result", around_result, HookType.AROUND)
    HookRegistry.register(_RETRACT.replace(":", "."), count_retractions, HookType.AFTER)
