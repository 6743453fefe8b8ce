"""How long the agent's thread sleeps: an iteration's time, and several of them while nothing is drafted."""

from collections import deque
from types import SimpleNamespace as Fake

import pytest

from sglang_nightjar.agent.cadence import BUSY_PERIOD_S, REST_PERIOD_S, Cadence
from sglang_nightjar.agent.collector import Collector
from sglang_nightjar.agent.decision import POLICY, Decision
from sglang_nightjar.agent.sampler import DecodeSample, Pressure
from sglang_nightjar.agent.scheduler_agent import SchedulerAgent
from sglang_nightjar.core.messages import Telemetry


def decision(gamma: int) -> Decision:
    return Decision(((1, 8, 3), (9, None, gamma)), POLICY, 1, "p", "", 0)


def run(cadence: Cadence, gamma: int, ms: float = 30.0, count: int = 1, start_s: float = 100.0) -> float:
    """``count`` iterations of 24 requests, each seen by a look of its own; when the last one ended, s."""
    for number in range(count):
        at = start_s + number * ms / 1000
        cadence.looked(True)
        cadence.saw(Telemetry(1, int(at * 1e9), int(ms * 1e6), 24, gamma, 24))
    return at


@pytest.mark.parametrize(("ms", "period_s"), [(2.0, BUSY_PERIOD_S), (30.0, 0.03), (300.0, REST_PERIOD_S)])
def test_while_drafts_are_made_it_looks_once_an_iteration(ms, period_s):
    cadence = Cadence()
    assert cadence.period_s() == BUSY_PERIOD_S
    run(cadence, 3, ms, 100)
    assert cadence.period_s() == period_s


@pytest.mark.parametrize(("ms", "period_s"), [(0.5, BUSY_PERIOD_S), (20.0, 0.2), (90.0, 0.3)])
def test_after_a_second_without_drafts_it_looks_every_ten_iterations(ms, period_s):
    cadence = Cadence()
    at = run(cadence, 3, ms)
    at = run(cadence, 0, ms, int(900 / ms), at + ms / 1000)
    assert cadence.period_s() <= REST_PERIOD_S
    run(cadence, 0, ms, int(300 / ms), at)
    assert cadence.period_s() == period_s


def test_a_draft_or_a_plan_to_draft_is_followed_closely_at_once():
    cadence = Cadence()
    at = run(cadence, 0, count=100)
    assert cadence.period_s() == 0.3
    cadence.decided(decision(0))
    assert cadence.period_s() == 0.3, "γ=3 is for other batches"
    cadence.decided(decision(1))
    assert cadence.period_s() == 0.03
    at = run(cadence, 0, count=100, start_s=at)
    assert cadence.period_s() == 0.3
    run(cadence, 1, start_s=at)
    assert cadence.period_s() == 0.03


def test_a_scheduler_that_rests_is_looked_at_twenty_times_a_second():
    cadence = Cadence()
    run(cadence, 0, ms=10.0, count=200)
    assert cadence.period_s() == 0.1
    cadence.looked(False)
    assert cadence.period_s() == 0.01
    for _ in range(60):
        cadence.looked(False)
    assert cadence.period_s() == REST_PERIOD_S


def test_the_agent_tells_it_what_runs_and_what_was_decided():
    agent = SchedulerAgent.__new__(SchedulerAgent)
    samples = deque(DecodeSample(at * 10**9, at - 0.03, 24, 1, [0] * 24, None, False, 0) for at in (100, 102))
    agent._sampler, agent._pressure = Fake(samples=samples, pressure=Pressure), Pressure()
    agent._cadence, agent._decided, agent.collector = Cadence(), deque(maxlen=1), Collector()
    agent.client = None
    agent._report()
    quiet_s = agent._cadence.period_s()
    assert quiet_s == 0.3
    agent.client, agent.steering = Fake(flush=lambda: None), Fake(next_decision=lambda: decision(1))
    agent._steer()
    assert agent._cadence.period_s() == REST_PERIOD_S and agent._decided
