"""The log line per regime, and the measured overhead."""

import logging

import pytest

from sglang_nightjar.agent.overhead import Overhead
from sglang_nightjar.agent.regimes import RegimeLog


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
        regimes.note(gamma, 8, iteration, "policy", "too busy")
    assert len(lines.messages) == 1
    for part in ("3 → 0", "batch size 8", "iteration 4", "policy", "too busy"):
        assert part in lines.messages[0]
    assert regimes.total == 1


def test_a_flood_of_switches_is_one_line_a_second_with_their_number(lines: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    regimes = RegimeLog(logging.INFO, clock)
    for iteration in range(1001):
        regimes.note(iteration % 2, 1, iteration, "policy", "")
        clock.now += 0.01
    assert 8 <= len(lines.messages) <= 12
    assert regimes.total == 1000
    assert regimes.switches == {(0, 1, "policy"): 500, (1, 0, "policy"): 500}
    assert "were not logged" in lines.messages[1]


def test_overhead_is_that_of_the_last_iterations() -> None:
    overhead = Overhead()
    assert overhead.percentiles().p99 == 0
    overhead.note(10**9)
    for number in range(10_000):
        overhead.note(100_000 if number % 50 == 0 else 20_000)
    assert (overhead.percentiles().p50, overhead.percentiles().p99) == (20.0, 100.0)
