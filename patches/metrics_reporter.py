"""managers/scheduler_components/metrics_reporter.py, SGLang 0.5.17: the acceptance rate while γ changes.

SGLang divides the accepted tokens of a log interval by what the γ of the moment would have proposed. Here the mean γ of
the interval, over its verified requests, stands in while SGLang computes the rate, for its log line and its gauge.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.agent import scheduler_agent
from sglang_nightjar.patches.seams import Seam

ROLES = ("scheduler",)

_CLASS = "sglang.srt.managers.scheduler_components.metrics_reporter:SchedulerMetricsReporter"

SEAMS = (
    Seam(
        f"{_CLASS}.update_spec_metrics",
        ("bs", "num_correct_drafts", "num_block_accept_tokens", "num_cap_tokens"),
        "hook",
        "to count what was proposed",
    ),
    Seam(
        f"{_CLASS}.report_decode_stats",
        ("can_run_cuda_graph", "running_batch", "num_correct_drafts"),
        "hook",
        "to divide by what was proposed",
    ),
)


def count_proposed(_result: None, reporter: Any, bs: int, *_args: Any, **_kwargs: Any) -> None:
    agent = scheduler_agent.current
    if agent is not None and agent.selector.launches:
        # The oldest launch without a result is the one whose result SGLang is looking at.
        agent.interval.add(agent.selector.launches[0].gamma, bs)


def report_true_rate(original: Callable[..., None], reporter: Any, *args: Any, **kwargs: Any) -> None:
    agent = scheduler_agent.current
    if agent is None or reporter.forward_ct_decode % reporter.decode_log_interval or not agent.interval.requests:
        original(reporter, *args, **kwargs)
        return
    from sglang.srt.runtime_context import get_spec

    with get_spec().override(speculative_num_draft_tokens=agent.interval.mean_gamma + 1):
        original(reporter, *args, **kwargs)
    if reporter.spec_num_forward_ct == 0:
        agent.interval.clear()


def apply() -> None:
    prefix = _CLASS.replace(":", ".")
    HookRegistry.register(f"{prefix}.update_spec_metrics", count_proposed, HookType.AFTER)
    HookRegistry.register(f"{prefix}.report_decode_stats", report_true_rate, HookType.AROUND)
