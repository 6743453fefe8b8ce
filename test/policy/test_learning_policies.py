"""Every policy that learns: credit where it is due, and no lasting harm from telemetry that can't be."""

import math

import pytest
from helpers.policy_load import Scheduler, make_hello
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_nightjar.policies.goodput import Goodput, GoodputParams
from sglang_nightjar.policies.model import Model
from sglang_nightjar.policies.nightjar import Nightjar
from sglang_nightjar.policies.ucb import Ucb, UcbParams

CANDIDATES = (0, 1, 3, 5)


def _profile():
    cost = Scheduler(Model(), make_hello()).cost_ns
    return tuple((size, gamma, 0, cost(size, gamma)) for size in (1, 4, 16, 64) for gamma in CANDIDATES)


LEARNERS = {
    "model": Model,
    "nightjar": Nightjar,
    "ucb": lambda seed: Ucb(UcbParams(width=0.1), seed=seed),
    "goodput": lambda seed: Goodput(GoodputParams(profile=_profile()), seed=seed),
}
learners = pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)

absurd = st.fixed_dictionaries(
    {},
    optional={
        "iteration_ns": st.sampled_from([0, -1, 2**53, 1, math.nan]),
        "at_ns": st.sampled_from([0, -(10**18), 2**53]),
        "committed": st.sampled_from([0, -5, 2**40, math.nan]),
        "context_tokens": st.sampled_from([-1, 2**52, math.nan]),
        "accepted": st.sampled_from([(), (-1,), (10**6,) * 3, (0, 5, 0)]),
        "retractions": st.sampled_from([0, 10**9]),
        "residency": st.sampled_from([0, 1, 6, 99]),
        "lag_total": st.sampled_from([-1, 2**52]),
        "kv_used": st.sampled_from([-1, 2**52]),
    },
)


@learners
@given(bursts=st.lists(absurd, min_size=1, max_size=40), size=st.sampled_from([2, 24]))
@settings(max_examples=4, deadline=None)
def test_recovers_from_any_finite_burst(make, bursts, size):
    assert _worth(make, size, bursts) > _worth(make, size, []) - 0.06


def _worth(make, size, bursts):
    """Throughput of the last iterations, against the best γ's, some hundreds of iterations after ``bursts``."""
    scheduler = Scheduler(make(seed=1), make_hello(candidates=CANDIDATES), seed=2)
    for _ in range(50):
        scheduler.step(size)
    for changes in bursts:
        scheduler.at_ns = 10**9
        scheduler.step(size, **changes)
    for _ in range(900):
        scheduler.step(size, residency=0, retractions=0)
    cost = {g: scheduler.cost_ns(size, g) / sum(0.8**i for i in range(g + 1)) for g in CANDIDATES}
    return sum(min(cost.values()) / cost[gamma] for gamma in scheduler.gammas[-400:]) / 400


@learners
def test_a_vanished_scheduler_is_forgotten_and_may_come_back(make):
    policy = make(seed=1)
    scheduler = Scheduler(policy, make_hello(candidates=CANDIDATES))
    for _ in range(100):
        scheduler.step(4)
    policy.goodbye(scheduler.hello.sender)
    assert policy.telemetry(scheduler.hello.sender, scheduler.step(4)) is None
    again = Scheduler(policy, make_hello(candidates=CANDIDATES))
    for _ in range(100):
        again.step(4)
    assert set(again.gammas) <= set(CANDIDATES)


def test_credit_goes_to_the_gamma_of_the_record():
    """Whatever was decided: only γ=3 ever runs, so only γ=3 has readings."""
    model, ucb = Model(seed=1), Ucb(seed=1)
    for policy in (model, ucb):
        scheduler = Scheduler(policy, make_hello(candidates=CANDIDATES))
        for _ in range(200):
            scheduler.step(4, gamma=3, committed=8, accepted=(2, 1, 1))
    [pool] = model.pools.values()
    assert {gamma for _, gamma in pool.latency.cells} == {3}
    [bandit] = ucb.bandits.values()
    assert {gamma for gamma, rounds in bandit.rounds.items() if rounds} == {3}
