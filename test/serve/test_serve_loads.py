"""Arrivals against what is known about the processes that they are drawn from."""

import random
import statistics
from pathlib import Path

import pytest
from scipy import stats

from bench.serve import arrivals, scenarios
from bench.serve.arrivals import TraceRow
from sglang_nightjar.errors import ConfigError


def test_poisson_gaps_are_exponential_and_counts_are_poisson() -> None:
    rate, seconds = 5.0, 4000.0
    times = arrivals.poisson(rate, 10.0, 10.0 + seconds, random.Random(1))
    assert times == sorted(times) and times[0] >= 10.0 and times[-1] < 10.0 + seconds
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert stats.kstest(gaps, "expon", args=(0, 1 / rate)).pvalue > 0.01
    counts = [sum(s <= t - 10.0 < s + 1 for t in times) for s in range(400)]
    # Index of dispersion: 1 for a Poisson process.
    assert statistics.variance(counts) / statistics.mean(counts) == pytest.approx(1.0, abs=0.25)
    assert arrivals.poisson(0.0, 0.0, 10.0, random.Random(1)) == []


def test_a_varying_rate_is_followed() -> None:
    seconds, low, high = 100.0, 1.0, 9.0
    rate = arrivals.day(low, high, seconds)
    assert (rate(0), rate(seconds / 2), rate(seconds)) == pytest.approx((low, high, low))
    draws = random.Random(2)
    days = [arrivals.varying_poisson(rate, high, seconds, draws) for _ in range(200)]
    # The mean of a cosine is its middle; a quarter of a day around noon holds more than its share.
    assert statistics.mean(map(len, days)) == pytest.approx(500, rel=0.02)
    noon = statistics.mean(sum(37.5 <= t < 62.5 for t in day) for day in days)
    # The integral of the rate over that quarter: (5 + 4 · sin(π/4) / (π/4)) · 25.
    assert noon == pytest.approx(215.0, rel=0.03)
    counts = [len(day) for day in days]
    assert statistics.variance(counts) / statistics.mean(counts) == pytest.approx(1.0, abs=0.4)


def test_a_burst_is_a_burst() -> None:
    times = arrivals.burst(24, 12.0, 0.5, random.Random(3))
    assert len(times) == 24 and times == sorted(times)
    assert times[0] >= 12.0 and times[-1] < 12.5
    scenario = scenarios.catalogue()["bursts"]
    drawn = [a.at for a in scenario.arrive(random.Random(4))]
    starts = [p.start for p in scenario.phases if p.name == "burst"]
    assert len(starts) == 4
    for start in starts:
        assert sum(start <= t < start + 0.5 for t in drawn) >= 24
    # Far burstier than Poisson: the index of dispersion of counts per second.
    counts = [sum(s <= t < s + 1 for t in drawn) for s in range(88)]
    assert statistics.variance(counts) / statistics.mean(counts) > 5


@pytest.mark.parametrize("name", ["surge", "sweep"])
def test_each_phase_has_its_rate(name: str) -> None:
    scenario = scenarios.catalogue(scenarios.Scale(time=20))[name]
    drawn = [a.at for a in scenario.arrive(random.Random(5))]
    rates = {"before": 0.4, "surge": 5.0, "recovery": 0.4}
    for phase in scenario.phases:
        wanted = rates.get(phase.name) or float(phase.name.removesuffix("/s"))
        expected = wanted * (phase.end - phase.start)
        found = sum(phase.start <= t < phase.end for t in drawn)
        # Four standard deviations of a Poisson count.
        assert abs(found - expected) < 4 * expected**0.5


def test_scales() -> None:
    normal = scenarios.catalogue()["clients"]
    scaled = scenarios.catalogue(scenarios.Scale(time=2, rate=10))["clients"]
    assert scaled.seconds == 2 * normal.seconds
    assert [c.clients for c in scaled.clients] == [10 * c.clients for c in normal.clients]
    for scale in (0.25, 0.5):
        short = scenarios.catalogue(scenarios.Scale(time=scale))
        # A burst without the time to work it off would not be a burst: there are fewer of them.
        assert [(p.name, p.end - p.start) for p in short["bursts"].phases[:2]] == [("between", 12.0), ("burst", 10.0)]
        assert len(short["bursts"].phases) == 8 * scale
        drawn = [a.at for a in short["bursts"].arrive(random.Random(4))]
        assert sum(12.0 <= at < 12.5 for at in drawn) >= 24
        for scenario in short.values():
            assert all(phase.end - phase.start >= 5.0 for phase in scenario.phases)
            assert [p.name for p in scenario.phases][:2] == [
                p.name for p in scenarios.catalogue()[scenario.name].phases
            ][:2]
    assert [p.end - p.start for p in scenarios.catalogue(scenarios.Scale(0.5))["surge"].phases] == [10.0, 15.0, 20.0]
    assert [c.seconds for c in scenarios.catalogue(scenarios.Scale(0.5))["clients"].clients] == [7.5, 5, 12.5, 5, 7.5]
    for scenario in scenarios.catalogue().values():
        ends = [p.end for p in scenario.phases]
        assert [p.start for p in scenario.phases] == [0.0, *ends[:-1]]
        assert 60 <= scenario.seconds <= 120


TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:13.9799600,110,27
2023-11-16 18:18:43.9799600,7433,14
"""


def test_a_trace_is_read_in_order_and_to_the_microsecond(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(TRACE)
    rows = arrivals.read_trace(file)
    assert [(r.prompt_tokens, r.new_tokens) for r in rows] == [(4808, 10), (3180, 8), (110, 27), (7433, 14)]
    assert [r.at for r in rows] == pytest.approx([0, 0.052, 10, 100], abs=1e-5)
    file.write_text("time,in,out\n1,2,3\n")
    with pytest.raises(ConfigError, match="is no table of TIMESTAMP"):
        arrivals.read_trace(file)


def test_a_replay_keeps_the_shape_of_the_trace() -> None:
    draw = random.Random(6)
    rows = [TraceRow(at, 100, 10) for at in arrivals.poisson(2.0, 0.0, 500.0, draw)]
    rows += [TraceRow(500.0 + at, 200, 20) for at in arrivals.poisson(8.0, 0.0, 500.0, draw)]
    found = arrivals.replay(rows, 3.0, 100.0, draw)
    assert len(found) == 300
    assert all(0 <= r.at < 100 for r in found) and found == sorted(found, key=lambda r: r.at)
    # The ratio of rates, and which lengths come when, are the trace's.
    assert sum(r.at >= 50 for r in found) / sum(r.at < 50 for r in found) == pytest.approx(4.0, rel=0.3)
    assert all(r.prompt_tokens == (200 if r.at >= 50 else 100) for r in found if abs(r.at - 50) > 1)
    # More than the trace has: some of it more than once.
    assert len(arrivals.replay(rows, 80.0, 100.0, draw)) == 8000 > len(rows)


def test_a_replay_has_the_lulls_of_the_trace_and_no_others() -> None:
    """Half an hour of nothing between two rushes."""
    rows = [TraceRow(10.0 * i, 100, 10) for i in range(60)] + [TraceRow(2400.0 + 10.0 * i, 100, 10) for i in range(61)]
    times = [r.at for seed in range(20) for r in arrivals.replay(rows, 1.0, 30.0, random.Random(seed))]
    assert len(times) == 600
    assert not any(6.0 < at < 23.9 for at in times)
    assert all(any(second <= at < second + 1 for at in times) for second in (*range(5), *range(25, 30)))


def test_the_trace_scenario_clips_nothing_away() -> None:
    rows = [TraceRow(float(i), 5000, 900) for i in range(1000)]
    scenario = scenarios.catalogue(trace=rows)["trace"]
    drawn = scenario.arrive(random.Random(7))
    assert len(drawn) == pytest.approx(1.5 * scenario.seconds, rel=0.02)
    assert {(a.prompt_tokens, a.new_tokens) for a in drawn} == {(5000, 900)}
