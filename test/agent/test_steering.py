"""Who decides: the policy as long as it lives, else the fallback; with a clock in the test's hands."""

from dataclasses import replace

import pytest
from helpers.router import make_plan

from sglang_nightjar.agent.decision import EXPIRED, FALLBACK, GONE, POLICY, SILENT
from sglang_nightjar.agent.link import LinkState
from sglang_nightjar.agent.selector import GammaSelector
from sglang_nightjar.agent.steering import Steering
from sglang_nightjar.core.messages import Plan

MS = 1_000_000


class FakeClient:
    """What Steering sees of a PolicyClient."""

    def __init__(self) -> None:
        self.state = LinkState.CONNECTING
        self.life_ns = 0
        self.plan: Plan | None = None
        self.acks: list[tuple[int, int, str]] = []

    def collect(self) -> Plan | None:
        plan, self.plan = self.plan, None
        return plan

    def acknowledge(self, plan_id: int, iteration: int, refused: str = "") -> None:
        self.acks.append((plan_id, iteration, refused))

    def flush(self) -> None: ...


class Bench:
    def __init__(self) -> None:
        self.now = 1_000_000 * MS
        self.client = FakeClient()
        self.selector = GammaSelector((0, 1, 2, 3), 3)
        self.steering = Steering(self.client, self.selector, clock_ns=lambda: self.now)  # type: ignore[arg-type]

    def deliver(self, plan: Plan):
        self.client.state = LinkState.UP
        self.client.life_ns = self.now
        self.client.plan = plan
        return self.steering.next_decision()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_new_plan_is_put_in_force_once(bench: Bench) -> None:
    plan = make_plan(1)
    decision = bench.deliver(plan)
    assert (decision.source, decision.plan_id, decision.gammas) == (POLICY, plan.plan_id, plan.gammas)
    assert bench.deliver(plan) is None
    assert bench.steering.next_decision() is None


def test_the_fallback_comes_at_once_when_the_connection_breaks_and_goes_with_the_next_plan(bench: Bench) -> None:
    plan = make_plan(1)
    bench.deliver(plan)
    bench.client.state = LinkState.CONNECTING
    decision = bench.steering.next_decision()
    assert (decision.source, decision.plan_id, decision.gamma_for(9)) == (FALLBACK, 0, 3)
    assert decision.cause == GONE
    assert bench.steering.next_decision() is None
    assert bench.steering.fallbacks == 1
    assert bench.deliver(make_plan(2)).source == POLICY


def test_silence_is_a_fallback_and_the_same_plan_again_ends_it(bench: Bench) -> None:
    plan = make_plan(1)
    bench.deliver(plan)
    bench.client.state = LinkState.STALE
    bench.now += 2000 * MS
    decision = bench.steering.next_decision()
    assert "2.0 s" in decision.reason and decision.cause == SILENT
    decision = bench.deliver(plan)
    assert (decision.source, decision.plan_id) == (POLICY, plan.plan_id)


def test_a_plan_runs_out_although_the_link_lives(bench: Bench) -> None:
    plan = make_plan(1, valid_for_ms=500)
    bench.deliver(plan)
    bench.now += 499 * MS
    assert bench.steering.next_decision() is None
    bench.now += 2 * MS
    assert bench.steering.next_decision().cause == EXPIRED


def test_a_repeated_plan_is_valid_for_longer(bench: Bench) -> None:
    plan = make_plan(1, valid_for_ms=500)
    for _ in range(5):
        bench.deliver(plan)
        bench.now += 400 * MS
    assert bench.steering.next_decision() is None


def test_what_this_scheduler_can_not_run_is_refused_and_the_old_plan_stays(bench: Bench) -> None:
    good, bad = make_plan(2), make_plan(9)
    bench.deliver(good)
    assert bench.deliver(bad) is None
    assert [(plan_id, iteration) for plan_id, iteration, _ in bench.client.acks] == [(bad.plan_id, 0)]
    assert "[9]" in bench.client.acks[0][2]
    assert bench.deliver(bad) is None
    assert len(bench.client.acks) == 1


def test_the_round_trip_is_measured_against_the_record_that_the_plan_answers(bench: Bench) -> None:
    bench.deliver(replace(make_plan(1), echo_ns=bench.now - 3 * MS))
    assert bench.steering.round_trips.percentiles().p50 == 3000
