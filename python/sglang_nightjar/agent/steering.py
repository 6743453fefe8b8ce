"""Which plan decides: the policy process', as long as it lives, or the fallback. Runs on the rank that has the link."""

import time
from collections.abc import Callable

from sglang_nightjar.agent.client import PolicyClient
from sglang_nightjar.agent.decision import EXPIRED, FALLBACK, GONE, SILENT, Decision, fallback, from_plan
from sglang_nightjar.agent.durations import Durations
from sglang_nightjar.agent.link import LinkState
from sglang_nightjar.agent.selector import GammaSelector
from sglang_nightjar.core.messages import Plan


class Steering:
    """Turns plans, and the silence of the policy process, into decisions.

    Attributes:
        fallbacks: how often a policy lost its say.
        round_trips: from a telemetry record's result until the plan that answers it was read.
    """

    def __init__(self, client: PolicyClient, selector: GammaSelector, clock_ns: Callable[[], int] = time.monotonic_ns):
        self.client = client
        self.fallbacks = 0
        self.round_trips = Durations()
        self._selector = selector
        self._clock_ns = clock_ns
        self._in_force = selector.decision
        self._refused = 0
        self._plan: Plan | None = None
        self._valid_until_ns = 0

    def next_decision(self) -> Decision | None:
        """The decision to put in force now, on all ranks; None if that in force stays."""
        plan = self.client.collect()
        now = self._clock_ns()
        if plan is not None and plan.plan_id != self._refused:
            if plan.echo_ns:
                self.round_trips.note(max(0, now - plan.echo_ns))
            self._valid_until_ns = now + plan.valid_for_ms * 1_000_000
            if self._plan is None or plan.plan_id != self._plan.plan_id:
                decision = from_plan(plan, now)
                if refusal := self._selector.refusal(decision):
                    self._refused = plan.plan_id
                    self.client.acknowledge(plan.plan_id, 0, refusal)
                    self.client.flush()
                    return None
                self._plan = plan
                return self._put_in_force(decision)
        trouble = self._trouble(now)
        if self._in_force.source == FALLBACK:
            if self._plan is None or trouble:
                return None
            return self._put_in_force(from_plan(self._plan, now))
        if trouble:
            self.fallbacks += 1
            cause, reason = trouble
            return self._put_in_force(fallback(self._selector.fallback_gamma, reason, now, cause))
        return None

    def _put_in_force(self, decision: Decision) -> Decision:
        self._in_force = decision
        return decision

    def _trouble(self, now: int) -> tuple[str, str] | None:
        """Why the plan can't be relied on: `Decision.cause` and ``reason``; None if it can."""
        state = self.client.state
        if state is LinkState.CONNECTING:
            return GONE, "the policy process is gone"
        if state is LinkState.STALE:
            return SILENT, f"no sign of life from the policy process for {(now - self.client.life_ns) / 1e9:.1f} s"
        if now > self._valid_until_ns:
            return EXPIRED, "the plan has run out"
        return None
