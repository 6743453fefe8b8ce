"""What goes out: plans as policies decide them, and again as a sign of life; and a record of each."""

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Iterable

import zmq

from sglang_nightjar.core import wire
from sglang_nightjar.core.messages import Plan
from sglang_nightjar.policy.decision_log import LogSwitch
from sglang_nightjar.policy.endpoint import Router
from sglang_nightjar.policy.host import Host, Verdict
from sglang_nightjar.policy.roster import Roster, Sender


class Outbox:
    """Attributes:
    stale_after: seconds that a plan is valid for; see `change_stale_after`.
    decisions: the last plans, those of shadows included: (Unix s, policy, shadow, plan id, verdict).
    """

    def __init__(self, router: Router, roster: Roster, log: LogSwitch, counters: Counter[str]) -> None:
        self._router, self._roster, self._log, self._counters = router, roster, log, counters
        self.stale_after = 1.0
        self.decisions: deque[tuple[float, str, bool, int, Verdict]] = deque(maxlen=1000)
        # Ids must grow over restarts: nobody makes a thousand plans in a millisecond.
        self._plan_id = (time.time_ns() // 1_000_000) << 10

    def change_stale_after(self, seconds: float) -> None:
        """Plans are valid for so long from now on."""
        self.stale_after = seconds
        for sender, _ in self._roster.agents():
            # At once: what is valid for the old time runs out before a longer one's first repetition.
            sender.plan_sent = 0.0

    @property
    def beat_every(self) -> float:
        """Seconds after which a plan is repeated."""
        return self.stale_after / 4

    def send(self, route: bytes, frame: bytes) -> None:
        """Send a frame, or count that it could not be sent."""
        try:
            self._router.socket.send_multipart([route, frame], zmq.DONTWAIT)
        except zmq.ZMQError:
            self._counters["unroutable"] += 1

    def obey(self, host: Host, verdicts: Iterable[Verdict], echoes: Iterable[tuple[str, int]], now: float) -> None:
        """Make plans of ``verdicts``; repeat the plan to each of ``echoes``: (sender, at_ns of a record)."""
        for verdict in verdicts:
            sender = self._roster.get(verdict.sender)
            if sender is not None and sender.hello is not None:
                self._plan(sender, host, verdict, now)
        for name, at_ns in echoes:
            sender = self._roster.get(name)
            if sender is not None and sender.plan is not None and now - sender.plan_sent > self.beat_every / 2:
                self._send_plan(sender, sender.plan, at_ns, now)

    def beat(self, host: Host | None, now: float) -> None:
        """Repeat plans to schedulers that are idle, as long as the policy is alive."""
        if host is None or not host.lively(now, self.beat_every):
            return
        for sender, _ in self._roster.agents():
            # Later than an echo, which says more.
            if sender.plan is not None and now - sender.plan_sent > 1.5 * self.beat_every:
                self._send_plan(sender, sender.plan, 0, now)

    def note_shadow(self, host: Host, verdicts: Iterable[Verdict]) -> None:
        """Record what a shadow would have done."""
        for verdict in verdicts:
            plan = dataclasses.replace(self._made(0, host, verdict), valid_for_ms=1, echo_ns=verdict.at_ns)
            self._note(verdict, plan, shadow=True)

    def _plan(self, sender: Sender, host: Host, verdict: Verdict, now: float) -> None:
        plan, new = sender.plan, self._made(self._plan_id + 1, host, verdict)
        if plan is None or _what_it_says(plan) != _what_it_says(new):
            self._plan_id += 1
            plan = sender.plan = new
            self._counters["plans"] += 1
            self._note(verdict, plan, shadow=False)
        self._send_plan(sender, plan, verdict.at_ns, now)

    def _made(self, plan_id: int, host: Host, verdict: Verdict) -> Plan:
        return Plan(
            plan_id,
            host.name,
            host.version,
            verdict.gammas,
            verdict.residency,
            verdict.reason,
            self._valid_for_ms,
            trim=verdict.trim,
        )

    def _send_plan(self, sender: Sender, plan: Plan, echo_ns: int, now: float) -> None:
        sender.plan_sent = now
        stamped = dataclasses.replace(plan, echo_ns=echo_ns, valid_for_ms=self._valid_for_ms)
        self.send(sender.route, wire.encode(stamped))

    def _note(self, verdict: Verdict, plan: Plan, shadow: bool) -> None:
        self.decisions.append((time.time(), plan.policy, shadow, plan.plan_id, verdict))
        self._log.plan(verdict.sender, plan, shadow)

    @property
    def _valid_for_ms(self) -> int:
        return max(1, round(self.stale_after * 1000))


def _what_it_says(plan: Plan) -> tuple[object, ...]:
    return plan.policy, plan.policy_version, plan.gammas, plan.residency, plan.trim
