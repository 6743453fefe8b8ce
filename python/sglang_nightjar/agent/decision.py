"""What the first rank tells all ranks of its TP group: which plan decides from the next iteration on."""

from dataclasses import dataclass

from sglang_nightjar.core.gammas import Ranges, lookup
from sglang_nightjar.core.messages import Plan

POLICY = "policy"
FALLBACK = "fallback"

#: `Decision.cause`, few and fixed, as a metric's label must be: a plan, or why there is none that counts.
PLAN, NONE_YET, GONE, SILENT, EXPIRED = "plan", "none_yet", "gone", "silent", "expired"

#: `Decision.plan_id` of the fallback, as in `Telemetry.plan_id`.
NO_PLAN = 0


@dataclass(frozen=True)
class Decision:
    """γ for every batch size, and who says so. It travels with SGLang's requests, so it must pickle.

    Attributes:
        gammas: (first, last, γ) rows as in `core.messages.Plan`.
        source: POLICY or FALLBACK.
        plan_id: the plan's; NO_PLAN for the fallback.
        policy: name of the policy; "" for the fallback.
        reason: one line for people.
        received_ns: the first rank's monotonic clock when it took the plan over.
        residency: where the plan wants the draft, ``device`` or ``host``.
        cause: the reason in one word: PLAN, NONE_YET, GONE, SILENT or EXPIRED.
        trim: as in `core.messages.Plan`.
    """

    gammas: Ranges
    source: str
    plan_id: int
    policy: str
    reason: str
    received_ns: int
    residency: str = "device"
    cause: str = PLAN
    trim: bool = False

    def gamma_for(self, batch_size: int) -> int:
        """γ for ``batch_size`` requests."""
        return lookup(self.gammas, batch_size)


def fallback(gamma: int, reason: str, now_ns: int, cause: str = NONE_YET) -> Decision:
    """The same γ for every batch size, until a plan counts again."""
    return Decision(((1, None, gamma),), FALLBACK, NO_PLAN, "", reason, now_ns, cause=cause)


def from_plan(plan: Plan, now_ns: int) -> Decision:
    """What ``plan`` says, taken over now."""
    return Decision(plan.gammas, POLICY, plan.plan_id, plan.policy, plan.reason, now_ns, plan.residency, trim=plan.trim)
