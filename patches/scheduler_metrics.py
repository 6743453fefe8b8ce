"""managers/scheduler.py, SGLang 0.5.17: Nightjar's Prometheus series beside SGLang's own, with ``--enable-metrics``.

SGLang sets PROMETHEUS_MULTIPROC_DIR before it starts its schedulers, and prometheus_client must be imported after that.
"""

from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.agent import scheduler_agent, status
from sglang_nightjar.patches.seams import Seam

ROLES = ("scheduler",)

_INIT = "sglang.srt.managers.scheduler:Scheduler.init_request_dispatcher"

SEAMS = (
    Seam(_INIT, (), "hook", "to start exporting once the agent is there"),
    Seam("sglang.srt.server_args:ServerArgs.enable_metrics", None, "field", "to export only if asked to"),
)


def start_exporter(_result: None, scheduler: Any) -> None:
    agent = scheduler_agent.current
    if agent is None or not agent.place.decides or not scheduler.server_args.enable_metrics:
        return
    from sglang_nightjar.observe.exporter import every_few_seconds
    from sglang_nightjar.observe.rank_metrics import RankMetrics

    metrics = RankMetrics(lambda: status.rank_status(agent))
    every_few_seconds(metrics.update, "scheduler")


def apply() -> None:
    # After patches/scheduler.py's hook on the same method, which starts the agent: hooks run in the order of the names.
    HookRegistry.register(_INIT.replace(":", "."), start_exporter, HookType.AFTER)
