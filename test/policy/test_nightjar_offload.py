"""Policy ``nightjar`` sends the draft away under pressure, and has it back after it."""

from sglang_nightjar.core.messages import Hello, Residency, Telemetry
from sglang_nightjar.policies.nightjar import Nightjar, NightjarParams

HELLO = Hello("s/dp0/0", 1, "s", 0, 1, 1, "t", "d", "cpu", (0, 3), 3, 16, 1000, 1300, 10_000)
MS = 1_000_000


def play(policy: Nightjar, decision, seconds: float, since_ns: int, cost_ms: dict[int, float], **changes):
    """An engine that does as planned; returns the last decision and the time."""
    at_ns, iteration, gone = since_ns, since_ns // MS, []
    while at_ns < since_ns + seconds * 1e9:
        away = decision.residency == "host"
        gamma = 0 if away else decision.gamma_for(8)
        at_ns += int(cost_ms[gamma] * MS)
        iteration += 1
        record = Telemetry(
            iteration, at_ns, int(cost_ms[gamma] * MS), 8, gamma, 8 + 2 * gamma, running=8,
            residency=Residency.OFFLOADED if away else Residency.PARKED,
            kv_capacity=1300 if away else 1000, **changes,
        )  # fmt: skip
        if (changed := policy.telemetry(HELLO.sender, record)) is not None:
            decision = changed
            gone.append(decision.residency)
    return decision, at_ns, gone


def test_it_leaves_under_pressure_and_returns_after_it() -> None:
    policy = Nightjar(NightjarParams(watermark=0.1, persistence_s=1.0))
    slow_drafts = {0: 10.0, 3: 60.0}
    decision = policy.hello(HELLO)
    assert decision.residency == "device"
    decision, now, _ = play(policy, decision, 30, 0, slow_drafts, kv_used=960)
    assert decision.residency == "host"
    decision, now, changes = play(policy, decision, 20, now, slow_drafts, kv_used=960)
    assert decision.residency == "host" and "device" not in changes
    decision, now, _ = play(policy, decision, 3, now, slow_drafts, kv_used=300)
    assert decision.residency == "device"


def test_it_stays_where_drafts_pay() -> None:
    policy = Nightjar(NightjarParams(watermark=0.1, persistence_s=1.0))
    decision, _, changes = play(policy, policy.hello(HELLO), 30, 0, {0: 10.0, 3: 11.0}, kv_used=960)
    assert decision.residency == "device" and "host" not in changes[len(changes) // 2 :]
