"""The log line per regime, and the measured overhead."""

import logging
from collections import deque
from types import SimpleNamespace as Fake

import pytest

from sglang_nightjar.agent.cadence import Cadence
from sglang_nightjar.agent.collector import Collector
from sglang_nightjar.agent.decision import GONE, POLICY, Decision, fallback
from sglang_nightjar.agent.durations import Durations
from sglang_nightjar.agent.regimes import RegimeLog
from sglang_nightjar.agent.sampler import DecodeSample, Pressure
from sglang_nightjar.agent.scheduler_agent import SchedulerAgent
from sglang_nightjar.agent.selector import GammaSelector, Launch
from sglang_nightjar.core.gammas import constant

BUSY = Decision(constant(0), POLICY, 7, "test", "too busy", 0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_one_line_per_switch_and_none_per_step(lines: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    regimes = RegimeLog(logging.INFO, clock)
    for iteration, gamma in enumerate([3, 3, 3, 0, 0, 0, 0], start=1):
        regimes.note(Launch(gamma, BUSY), 8, iteration)
    assert len(lines.messages) == 1
    for part in ("3 → 0", "batch size 8", "iteration 4", "policy", "too busy"):
        assert part in lines.messages[0]
    assert regimes.total == 1


def test_a_flood_of_switches_is_one_line_a_second_with_their_number(lines: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    regimes = RegimeLog(logging.INFO, clock)
    for iteration in range(1001):
        regimes.note(Launch(iteration % 2, BUSY), 1, iteration)
        clock.now += 0.01
    assert 8 <= len(lines.messages) <= 12
    assert regimes.total == 1000
    assert regimes.switches == {(0, 1, "policy", "batch_size"): 500, (1, 0, "policy", "batch_size"): 500}
    assert "were not logged" in lines.messages[1]


def test_overhead_is_that_of_the_last_iterations() -> None:
    overhead = Durations()
    assert overhead.percentiles().p99 == 0
    overhead.note(10**9)
    for number in range(10_000):
        overhead.note(100_000 if number % 50 == 0 else 20_000)
    assert (overhead.percentiles().p50, overhead.percentiles().p99) == (20.0, 100.0)


def test_a_switch_is_explained_by_the_plan_under_which_it_was_decoded(lines: pytest.LogCaptureFixture) -> None:
    """Results are read later than they are launched; by then another plan is in force."""
    selector = GammaSelector((0, 3), 3)
    agent = SchedulerAgent.__new__(SchedulerAgent)
    agent.selector, agent.client, agent.collector, agent.regimes = selector, None, Collector(), RegimeLog(logging.INFO)
    agent._pressure, agent._sampler = Pressure(), Fake(samples=deque(), pressure=Pressure)
    agent._cadence = Cadence()

    def launch(held: bool = False) -> None:
        selector.held = held
        selector.get_steps_for_batch(8)
        taken = selector.launches.popleft()
        agent._sampler.samples.append(DecodeSample(1, 0.0, 8, taken.gamma + 1, [0] * 8, taken, False, 1000))

    launch()
    selector.decide(BUSY)
    launch()
    selector.decide(Decision(constant(3), POLICY, 8, "test", "idle again", 0))
    agent._report()
    assert "3 → 0" in lines.messages[0] and "too busy" in lines.messages[0]
    agent.regimes._quiet_until = 0
    launch()
    agent._report()
    assert "0 → 3" in lines.messages[1] and "idle again" in lines.messages[1]
    agent.regimes._quiet_until = 0
    launch(held=True)
    agent._report()
    assert "3 → 0" in lines.messages[2] and "the draft is not ready" in lines.messages[2]


def test_each_switch_has_its_reason_in_one_word() -> None:
    regimes = RegimeLog(logging.INFO)
    before, plan = fallback(3, "no plan yet", 0), Decision(((1, 4, 5), (5, None, 1)), POLICY, 7, "test", "", 0)
    for launch in (
        Launch(3, before), Launch(5, plan), Launch(1, plan), Launch(0, plan, held=True), Launch(1, plan),
        Launch(3, fallback(3, "the policy process is gone", 1, GONE)),
    ):  # fmt: skip
        regimes.note(launch, 1, 1)
    assert regimes.switches == {
        (3, 5, "policy", "plan"): 1,
        (5, 1, "policy", "batch_size"): 1,
        (1, 0, "policy", "draft"): 1,
        (0, 1, "policy", "draft"): 1,
        (1, 3, "fallback", "gone"): 1,
    }
