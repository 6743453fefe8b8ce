"""The simulator: what must hold of any engine, and what can be worked out by hand."""

import sys
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest

from sglang_nightjar.core.policy import Decision, Policy
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policies.nightjar import Nightjar
from sglang_nightjar.policies.off import Off
from sglang_nightjar.policies.static import Static, StaticParams
from sglang_nightjar.sim import builtin
from sglang_nightjar.sim.acceptance import Acceptance, RequestClass
from sglang_nightjar.sim.costs import Costs, interpolate
from sglang_nightjar.sim.loads import Lengths, LoadSettings, make, read_trace
from sglang_nightjar.sim.setup import DraftMoves, EngineSettings, Setup
from sglang_nightjar.sim.world import _Router, simulate

COSTS = Costs(target=((1, 10e6), (32, 10e6), (64, 20e6)), draft=((1, 1e6),), prefill=((1, 1e6), (100, 5e6)), noise=0.0)
SETUP = Setup(COSTS, Acceptance((RequestClass((0.8, 0.5)),)), EngineSettings(candidates=(0, 1, 2), start_gamma=2))


def static(gamma):
    return Static(StaticParams(gamma=gamma))


def closed(clients, seconds=20.0, output=1000, **changes):
    return LoadSettings(clients=((seconds, clients),), prompt=Lengths(10), output=Lengths(output), **changes)


def test_tables_are_linear_between_points_and_beyond():
    table = ((1.0, 10.0), (3.0, 20.0), (5.0, 60.0))
    assert [interpolate(table, x) for x in (0.5, 1, 2, 3, 4, 7)] == [10, 10, 15, 20, 40, 100]
    with pytest.raises(ValueError, match="ascend"):
        Costs(target=((2.0, 1.0), (1.0, 2.0)))


def test_without_drafts_the_rate_is_clients_per_iteration():
    result = simulate(SETUP, closed(8), Off(), iterations=900)
    assert result.iterations == 900 and result.shares[0] > 0.99
    # 10 ms an iteration for up to 32 rows; the prefill takes next to nothing.
    assert result.tokens / (result.iterations * 0.010 * 8) == pytest.approx(100, rel=0.02)


def test_accepted_tokens_are_those_of_the_rates():
    """1 + 0.8 + 0.8 · 0.5 tokens per request and iteration."""
    result = simulate(SETUP, closed(8, seconds=100.0), static(2), seed=3)
    assert result.tokens / (result.iterations * result.batch_size) == pytest.approx(2.2, rel=0.02)


def test_efficiency_is_that_of_the_oracle_worked_out_by_hand():
    """At 8 clients γ=2 is the best: 2.2 tokens in 12 ms against 1 in 10 ms and 1.8 in 11 ms."""
    assert simulate(SETUP, closed(8), static(2)).efficiency == pytest.approx(1.0)
    assert simulate(SETUP, closed(8), static(1)).efficiency == pytest.approx((1.8 / 11) / (2.2 / 12), rel=1e-3)
    oracle = simulate(SETUP, closed(8), static(0), oracle=True)
    assert oracle.efficiency == pytest.approx(1.0) and oracle.shares == {2: 1.0}


def test_a_stall_is_as_long_in_a_large_batch_as_in_a_small_one():
    """0.5 s every 2 s of work: a quarter more time, whatever an iteration takes."""
    setup = replace(SETUP, costs=replace(COSTS, stalls_per_s=0.5, stall_ns=0.5e9))
    for clients in (1, 60):
        policy = Recorder(Decision(((1, None, 0),), "none"))
        simulate(setup, closed(clients, seconds=400.0), policy, seed=2)
        took = np.array([r.iteration_ns for r in policy.records if not r.prefill_tokens])
        usual = np.median(took)
        stalls = took[took > 1.001 * usual] - usual
        assert stalls.mean() == pytest.approx(0.5e9, rel=0.25)
        assert stalls.sum() / (usual * len(took)) == pytest.approx(0.25, rel=0.3)


def test_a_shared_machine_is_slow_for_a_while_whatever_runs():
    paces = {}
    for gamma in (0, 2):
        setup = replace(SETUP, costs=replace(COSTS, pace=0.2, pace_s=3.0))
        policy = Recorder(Decision(((1, None, gamma),), "none"))
        simulate(setup, closed(1, seconds=900.0, output=10**6), policy, seed=4)
        took = np.log([r.iteration_ns for r in policy.records])
        at = np.array([r.at_ns - r.iteration_ns for r in policy.records])
        paces[gamma] = np.interp(np.arange(10e9, 890e9, 0.5e9), at, took - took.mean())
    deviation = paces[0].std()
    assert deviation == pytest.approx(0.2, rel=0.25)
    # 1/e after three seconds, which are six readings; and the same machine for both.
    assert np.corrcoef(paces[0][:-6], paces[0][6:])[0, 1] == pytest.approx(np.exp(-1), abs=0.15)
    assert np.corrcoef(paces[0], paces[2])[0, 1] > 0.97


def test_the_oracle_counts_the_prefills_between_iterations():
    """By decoding alone γ=0 is the best: 32 tokens in 10 ms against 57.6 in 21. But a prefill of 20 ms follows each."""
    setup = replace(SETUP, costs=replace(COSTS, prefill=((1, 20e6), (100, 22e6))))
    load = LoadSettings(clients=((20.0, 32),), prompt=Lengths(10), output=Lengths(12, 0.6, 4, 60))
    rates = {gamma: simulate(setup, load, static(gamma), seed=1).rate for gamma in (0, 1)}
    assert rates[1] > 1.15 * rates[0]
    assert simulate(setup, load, static(0), seed=1, oracle=True).rate > 0.97 * rates[1]


def test_the_machine_of_one_seed_stalls_alike_whatever_the_policy():
    """Or the stalls, and not the policies, would make the difference of two runs."""
    setup = replace(SETUP, costs=replace(COSTS, stalls_per_s=0.5, stall_ns=0.5e9))
    found = []
    for gamma in (0, 2):
        policy = Recorder(Decision(((1, None, gamma),), "one"))
        simulate(setup, closed(1, seconds=60.0), policy, seed=2)
        usual = 1e7 + 1e6 * gamma
        found.append(
            [r.iteration_ns - usual for r in policy.records if not r.prefill_tokens and r.iteration_ns > 1.5e7]
        )
    assert len(found[0]) > 10
    assert found[0][:10] == pytest.approx(found[1][:10], abs=10)


@pytest.mark.parametrize("gamma", [0, 2])
@pytest.mark.parametrize("kv_tokens", [400, 32_768])
def test_every_request_gets_its_tokens_also_when_kv_is_short(gamma, kv_tokens):
    setup = replace(SETUP, engine=replace(SETUP.engine, kv_tokens=kv_tokens, headroom=2))
    load = LoadSettings(rates=((5.0, 20.0),), prompt=Lengths(20, 0.5, 1, 60), output=Lengths(60, 0.7, 1, 200))
    result = simulate(setup, load, static(gamma), seed=1, drain=True)
    wanted, source = [], make(load, setup.acceptance.shares(), 1)
    while source.next_at < 5e9:
        wanted.append(source.pop().total)
    assert result.requests == len(wanted) and result.refused == 0
    assert result.tokens == sum(wanted)
    assert (result.retractions > 0) == (kv_tokens == 400)


def test_a_request_larger_than_the_cache_is_refused_and_the_others_are_served():
    setup = replace(SETUP, engine=replace(SETUP.engine, kv_tokens=60, headroom=1))
    load = LoadSettings(rates=((20.0, 2.0),), prompt=Lengths(30, 1.0, 1, 200), output=Lengths(4))
    result = simulate(setup, load, static(1), drain=True)
    assert result.refused > 0 and result.requests > 0


def test_same_seed_same_run_and_another_one_differs():
    load = closed(5, seconds=10.0)
    first, second, other = (simulate(SETUP, load, Nightjar(seed=1), seed=seed) for seed in (4, 4, 5))
    assert first == second and first != other


class Recorder(Policy):
    """Keeps what it is told."""

    name = "recorder"

    def __init__(self, decision=None):
        super().__init__()
        self.decision, self.records, self.arrived = decision or Decision(((1, None, 2),), "all"), [], []

    def hello(self, hello):
        return self.decision

    def telemetry(self, sender, record):
        self.records.append(record)

    def arrivals(self, arrivals):
        self.arrived.append(arrivals)


def test_a_policy_may_decide_nothing_at_first():
    policy = Recorder()
    policy.decision = None
    assert simulate(SETUP, closed(8), policy).shares == {SETUP.engine.start_gamma: 1.0}


def test_telemetry_is_what_a_scheduler_sends():
    policy = Recorder()
    simulate(SETUP, closed(6, seconds=5.0, output=40), policy)
    assert [r.iteration for r in policy.records] == list(range(1, len(policy.records) + 1))
    assert all(a.at_ns < b.at_ns for a, b in zip(policy.records, policy.records[1:], strict=False))
    for record in policy.records:
        assert len(record.accepted) == record.gamma == 2
        assert record.batch_size >= record.accepted[0] >= record.accepted[1] >= 0
        assert record.committed == record.batch_size + sum(record.accepted)
        assert record.kv_used <= record.kv_capacity
    shared = [r for r in policy.records if r.prefill_tokens]
    assert shared and all(r.iteration_ns > 12e6 for r in shared)
    assert sum(a.requests for a in policy.arrived) > 0


def test_a_parked_draft_catches_up_before_it_is_used():
    moves = DraftMoves(parks=True, catch_up_ns=5e6, catch_up_token_ns=1e5, catch_up_chunk=50)
    setup = replace(SETUP, engine=replace(SETUP.engine, draft=moves, plan_delay=0))

    class Turns(Recorder):
        def telemetry(self, sender, record):
            self.records.append(record)
            gamma = 0 if record.iteration % 100 < 50 else 2
            return Decision(((1, None, gamma),), "turns")

    policy = Turns()
    simulate(setup, closed(2, output=100_000), policy, iterations=300)
    states = [record.residency for record in policy.records]
    assert {0, 1, 6} == set(states)
    assert all(record.gamma == 0 for record in policy.records if record.residency)
    first = states.index(6)
    lag = policy.records[first - 1].lag_total
    assert 50 < lag <= 100
    # In chunks: a fixed part and 50 tokens, then the others, each beside an iteration of 10 ms.
    assert [policy.records[first + i].iteration_ns for i in (0, 1)] == [20_000_000, 10_000_000 + (lag - 50) * 100_000]


def test_an_offloaded_draft_gives_its_memory_to_the_cache():
    engine = replace(SETUP.engine, kv_tokens=500, kv_tokens_without_draft=900, draft=DraftMoves(parks=True))
    policy = Recorder(Decision(((1, None, 0),), "away", "host"))
    result = simulate(replace(SETUP, engine=engine), closed(4, output=50), policy)
    assert result.offloads == 1
    assert {record.kv_capacity for record in policy.records} == {500, 900}
    assert policy.records[-1].residency == 3


def test_replicas_share_one_policy():
    policy = Recorder()
    load = LoadSettings(rates=((10.0, 40.0),), prompt=Lengths(10), output=Lengths(50))
    result = simulate(SETUP, load, policy, replicas=5, drain=True)
    assert result.requests == pytest.approx(400, abs=80)
    assert len(policy.records) == result.iterations


class TestLoads:
    def times(self, settings, seed=0):
        source, found = make(settings, np.array([1.0]), seed), []
        while source.next_at < 1e18:
            found.append(source.pop().arrival_ns / 1e9)
        return found

    def test_poisson_phases_have_their_rates(self):
        times = np.array(self.times(LoadSettings(rates=((100.0, 10.0), (50.0, 0.0), (100.0, 40.0)))))
        assert sum(times < 100) == pytest.approx(1000, abs=120)
        assert sum((times >= 100) & (times < 150)) == 0
        assert sum(times >= 150) == pytest.approx(4000, abs=250)
        gaps = np.diff(times[times >= 150])
        assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.06)

    def test_bursts_are_burstier_than_poisson(self):
        settings = LoadSettings(bursts=((1.0, 10.0), (30.0, 5.0)), seconds=3000.0)
        counts = np.histogram(self.times(settings), bins=3000, range=(0, 3000))[0]
        assert counts.mean() == pytest.approx((1 * 10 + 30 * 5) / 15, rel=0.2)
        assert counts.var() > 5 * counts.mean()

    def test_a_trace_comes_in_its_own_time_scaled(self, tmp_path):
        file = tmp_path / "trace.csv"
        rows = ["2023-11-16 18:17:03.9799600,4808,10", "2023-11-16 18:17:05.9799600,31,8"]
        file.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
        assert read_trace(file) == [(0.0, 4808, 10), (pytest.approx(2.0), 31, 8)]
        settings = LoadSettings(trace=str(file), time_scale=0.5, rate_scale=3, clip=(1000, 100))
        assert self.times(settings) == pytest.approx([0, 0, 0, 1, 1, 1])
        assert make(settings, np.array([1.0]), 0).pop().prompt == 1000
        file.write_text("a,b\n1,2\n")
        with pytest.raises(ConfigError, match="no table of TIMESTAMP"):
            read_trace(file)

    def test_a_closed_loop_keeps_its_clients_busy(self):
        policy = Recorder()
        load = LoadSettings(clients=((10.0, 3), (10.0, 9), (10.0, 1)), prompt=Lengths(10), output=Lengths(20))
        simulate(SETUP, load, policy)
        sizes = {
            phase: [r.batch_size for r in policy.records if phase < r.at_ns / 1e10 < phase + 0.95]
            for phase in (0, 1, 2)
        }
        assert [round(float(np.median(sizes[phase]))) for phase in (0, 1, 2)] == [3, 9, 1]

    def test_exactly_one_kind(self):
        with pytest.raises(ValueError, match="exactly one"):
            LoadSettings(rates=((1.0, 1.0),), clients=((1.0, 1.0),))


@pytest.mark.parametrize("name", builtin.names())
def test_the_servers_that_come_along(name, tmp_path):
    setup = builtin.builtin(name)
    assert setup.source
    file = tmp_path / "setup.yaml"
    file.write_text(setup.dump())
    assert builtin.find(str(file)) == setup
    best = [min(setup.engine.candidates, key=lambda g: setup.costs.decode_ns(b, g)) for b in (1, 16, 200)]
    assert best == [0, 0, 0]


def test_an_unknown_server_is_refused():
    with pytest.raises(ConfigError, match="must be a YAML file or one of"):
        builtin.builtin("abacus")


def test_the_router_finds_the_replica_with_the_fewest_requests():
    engines = [SimpleNamespace(load=0) for _ in range(7)]
    router, random = _Router(engines), Random(1)
    for _ in range(5000):
        index = router.least()
        assert index == min(range(7), key=lambda i: engines[i].load)
        engines[index].load += 1
        router.changed(index)
        for other in random.sample(range(7), 2):
            if engines[other].load and random.random() < 0.6:
                engines[other].load -= 1
                router.changed(other)
    assert len(router._heap) < 200


def test_an_arrival_costs_no_more_with_many_replicas():
    """Calls, not seconds: none of them is made once for each replica."""
    load = LoadSettings(rates=((10.0, 100.0),), prompt=Lengths(10), output=Lengths(2))

    def calls(replicas):
        counted = 0

        def count(frame, event, argument):
            nonlocal counted
            counted += event == "call"

        sys.setprofile(count)
        try:
            simulate(SETUP, load, Off(), replicas=replicas)
        finally:
            sys.setprofile(None)
        return counted

    assert calls(800) - calls(400) < 400 * 150


def test_tokens_of_requests_within_their_bounds_worked_out_by_hand():
    """γ=0: 10 ms a token; the first token takes a prefill of 10 tokens, and that of the other client."""
    load = LoadSettings(rates=((20.0, 2.0),), prompt=Lengths(10), output=Lengths(20))

    def within(**bounds):
        return simulate(SETUP, load, static(0), seed=1, drain=True, **bounds)

    everything = within()
    assert everything.within == 20 * everything.requests == everything.tokens
    assert within(tpot_ms=9.9).within == 0
    assert within(ttft_ms=0.5).within == 0
    # Those beside which nobody else was prefilled take 10 ms a token.
    some = within(tpot_ms=10.0001).within
    assert 0 < some < everything.within and some % 20 == 0
    assert within(tpot_ms=12.0, ttft_ms=100.0).within == everything.within
