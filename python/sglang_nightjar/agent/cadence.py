"""How often the agent's thread looks for samples and plans.

More than once an iteration there is nothing to see, and each look takes time from the scheduler: its own, and that of
the policy process and its worker, which it wakes. While nothing is drafted, and has not been for a while, there is
little to learn and nothing to correct, so several iterations are told at a time.
"""

from sglang_nightjar.agent.decision import Decision
from sglang_nightjar.core.messages import Telemetry

#: s. While the scheduler works, at most so often; while it rests, or takes longer for an iteration, at least.
BUSY_PERIOD_S = 0.01
REST_PERIOD_S = 0.05
#: Iterations at γ=0 that are told together, at most for so long, once nothing was drafted for so long.
_TOGETHER, _TOGETHER_S, _SETTLED_NS = 10, 0.3, 1_000_000_000
#: It takes the scheduler to rest after so many looks in vain.
_LOOKS_IN_VAIN = 50


class Cadence:
    """Told what was seen and decided, it says how long to sleep."""

    def __init__(self) -> None:
        self._last: Telemetry | None = None
        self._drafted_ns = 0
        self._in_vain = 0

    def looked(self, found: bool) -> None:
        """A look, in which there were samples or not."""
        self._in_vain = 0 if found else self._in_vain + 1

    def saw(self, record: Telemetry) -> None:
        """An iteration. Drafts, and the first of all iterations, are followed closely."""
        if record.gamma > 0 or self._last is None:
            self._drafted_ns = record.at_ns
        self._last = record

    def decided(self, decision: Decision) -> None:
        """A new decision: one that drafts at the present batch size is followed closely."""
        if self._last is not None and decision.gamma_for(self._last.batch_size) > 0:
            self._drafted_ns = self._last.at_ns

    def period_s(self) -> float:
        """Until the next look."""
        if self._in_vain >= _LOOKS_IN_VAIN:
            return REST_PERIOD_S
        if self._last is None:
            return BUSY_PERIOD_S
        iteration_s = self._last.iteration_ns / 1e9
        if self._in_vain == 0 and self._last.at_ns - self._drafted_ns >= _SETTLED_NS:
            return min(max(BUSY_PERIOD_S, _TOGETHER * iteration_s), _TOGETHER_S)
        return min(max(BUSY_PERIOD_S, iteration_s), REST_PERIOD_S)
