"""What holds of every policy, whatever it is told: hypothesis looks for telemetry that breaks it."""

import json
import math

import pytest
from helpers.policy_load import Scheduler, make_hello
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_nightjar.core.latency_model import bucket
from sglang_nightjar.core.messages import MAX_INT, Arrivals
from sglang_nightjar.core.policy import check
from sglang_nightjar.core.speculation import MARGIN
from sglang_nightjar.policies.ema import Ema
from sglang_nightjar.policies.goodput import Goodput, GoodputParams
from sglang_nightjar.policies.model import Model, ModelParams
from sglang_nightjar.policies.nightjar import Nightjar
from sglang_nightjar.policies.off import Off
from sglang_nightjar.policies.static import Static
from sglang_nightjar.policies.table import Table, TableParams
from sglang_nightjar.policies.ucb import Ucb, UcbParams

CANDIDATES = (0, 1, 3, 5)
PROFILE = tuple(
    (size, gamma, 0, 10e6 * max(1.0, size * (gamma + 1) / 32) + 1e6 * gamma)
    for size in (1, 4, 16, 64)
    for gamma in CANDIDATES
)
MAKERS = {
    "off": Off,
    "static": Static,
    "table": lambda seed: Table(TableParams(ranges=((1, 4, 5), (5, None, 0))), seed=seed),
    "ema": Ema,
    "ucb": lambda seed: Ucb(UcbParams(width=0.1), seed=seed),
    "goodput": lambda seed: Goodput(GoodputParams(profile=PROFILE), seed=seed),
    "nightjar": Nightjar,
    "model": Model,
    "model-latency": lambda seed: Model(ModelParams(objective="latency"), seed=seed),
    "model-slo": lambda seed: Model(ModelParams(objective="slo", tpot_ms=15.0, ttft_ms=500.0), seed=seed),
}
LEARNERS = ("ema", "ucb", "goodput", "nightjar", "model", "model-latency", "model-slo")
every = pytest.mark.parametrize("name", MAKERS)
learners = pytest.mark.parametrize("name", LEARNERS)

#: One iteration of nonsense: zeros, negatives, NaN, clocks that jump, counters that start again.
ABSURD = st.fixed_dictionaries(
    {},
    optional={
        "iteration": st.sampled_from([0, 1, MAX_INT]),
        "iteration_ns": st.sampled_from([0, -1, 1, MAX_INT, math.nan, math.inf]),
        "at_ns": st.sampled_from([0, -(10**18), MAX_INT, math.nan]),
        "batch_size": st.sampled_from([0, -3, 1, MAX_INT]),
        "gamma": st.sampled_from([-1, 0, 2, 3, 64]),
        "committed": st.sampled_from([0, -5, 2**40, math.nan]),
        "context_tokens": st.sampled_from([-1, 2**52, math.nan]),
        "prefill_tokens": st.sampled_from([-1, 1, 2**52]),
        "queue_length": st.sampled_from([-1, 2**52]),
        "accepted": st.sampled_from([(), (-1,), (10**6,) * 3, (0, 5, 0)]),
        "retractions": st.sampled_from([0, 10**9]),
        "residency": st.sampled_from([0, 1, 6, 99]),
        "lag_max": st.sampled_from([-1, 2**52]),
        "lag_total": st.sampled_from([-1, 2**52]),
        "kv_used": st.sampled_from([-1, 2**52, math.nan]),
        "kv_capacity": st.sampled_from([0, -1, 1, math.nan]),
    },
)
#: Also: a scheduler that goes and comes, and reports of arrivals that can't be.
EVENT = st.one_of(
    ABSURD,
    ABSURD,
    st.just("gone"),
    st.builds(
        Arrivals, st.just("s/t/0"), st.just(1), st.just("s"), st.sampled_from([0, -1, MAX_INT]),
        st.sampled_from([0, -1, MAX_INT]), st.sampled_from([0, -1, MAX_INT]), st.just(0),
    ),
)  # fmt: skip
BURST = st.lists(EVENT, max_size=30)


class Checked:
    """A policy that is asked as a scheduler asks it; all of its decisions are kept and must be valid."""

    def __init__(self, policy):
        self.policy, self.decisions, self.changes = policy, [], {}

    def hello(self, hello):
        return self.keep(self.policy.hello(hello))

    def telemetry(self, sender, record):
        decision = self.policy.telemetry(sender, record._replace(**self.changes))
        return decision if decision is None else self.keep(decision)

    def keep(self, decision):
        assert check(decision, CANDIDATES) is None
        self.decisions.append(decision)
        return decision


def play(name, bursts, size, seed=1, before=40, after=0):
    """An ordinary load with ``bursts`` of nonsense in it."""
    checked = Checked(MAKERS[name](seed=seed))
    scheduler = Scheduler(checked, make_hello(candidates=CANDIDATES), seed=2)
    for _ in range(before):
        scheduler.step(size)
    now = scheduler.at_ns
    for event in bursts:
        if event == "gone":
            checked.policy.goodbye(scheduler.hello.sender)
            scheduler.step(size)
            scheduler.plan = checked.hello(scheduler.hello)
        elif isinstance(event, Arrivals):
            checked.policy.arrivals(event)
        else:
            checked.changes = event
            scheduler.step(size)
            checked.changes = {}
    scheduler.at_ns = now
    for _ in range(after):
        scheduler.step(size, residency=3 if scheduler.plan.residency == "host" else 0, kv_used=100, kv_capacity=10_000)
    return scheduler, checked


@every
@given(bursts=BURST, size=st.sampled_from([1, 6, 40]))
@settings(max_examples=8, deadline=None)
def test_no_gamma_outside_the_candidates_and_no_exception(name, bursts, size):
    _, checked = play(name, bursts, size, after=60)
    assert {gamma for decision in checked.decisions for _, _, gamma in decision.gammas} <= set(CANDIDATES)
    json.dumps(checked.policy.estimates())


@every
@given(bursts=BURST, size=st.sampled_from([1, 6, 40]))
@settings(max_examples=3, deadline=None)
def test_same_seed_same_decisions(name, bursts, size):
    first, second = (play(name, bursts, size, after=60)[1].decisions for _ in range(2))
    assert first == second


@learners
@given(bursts=BURST, size=st.sampled_from([2, 24]))
@settings(max_examples=3, deadline=None)
def test_recovers_from_any_finite_burst(name, bursts, size):
    def worth(events):
        scheduler, _ = play(name, events, size, after=900)
        rates = {g: sum(0.8**i for i in range(g + 1)) / scheduler.cost_ns(size, g) for g in CANDIDATES}
        return sum(rates[gamma] for gamma in scheduler.gammas[-400:]) / 400 / max(rates.values())

    assert worth(bursts) > worth([]) - 0.08


def rewarded(policy):
    """γ that the policy has readings of."""
    match policy:
        case Model():
            return {gamma for pool in policy.pools.values() for _, gamma in pool.latency.cells}
        case Nightjar():
            return {g for pool in policy.pools.values() for bucket in pool for g in bucket.cells}
        case Ucb():
            return {g for bandit in policy.bandits.values() for g, rounds in bandit.rounds.items() if rounds}
        case Goodput():
            return {int(row[1]) for scheduler in policy.schedulers.values() for row in scheduler.rows}
    raise AssertionError(policy)


@pytest.mark.parametrize("name", [name for name in LEARNERS if name != "ema"])
@given(ran=st.sampled_from(CANDIDATES), size=st.sampled_from([1, 6, 40]))
@settings(max_examples=8, deadline=None)
def test_no_reward_for_another_gamma_than_the_one_that_ran(name, ran, size):
    """Whatever is decided, the scheduler runs the same γ: nothing else has readings."""
    policy = Goodput(seed=1) if name == "goodput" else MAKERS[name](seed=1)
    scheduler = Scheduler(policy, make_hello(candidates=CANDIDATES), seed=3)
    for _ in range(120):
        accepted = tuple(max(0, size - 1 - i) for i in range(ran))
        scheduler.step(size, gamma=ran, accepted=accepted, committed=size + sum(accepted))
    assert rewarded(policy) <= {ran}


@given(ran=st.sampled_from(CANDIDATES), size=st.sampled_from([1, 6, 40]))
@settings(max_examples=8, deadline=None)
def test_ema_learns_nothing_from_another_gamma_than_its_slot_s(ran, size):
    policy = Ema(seed=1)
    scheduler = Scheduler(policy, make_hello(candidates=CANDIDATES), seed=3)
    [slots] = policy.schedulers.values()
    for _ in range(120):
        before = [(slot.gamma, slot.iterations, slot.accepted) for slot in slots]
        scheduler.step(size, gamma=ran, accepted=tuple(max(0, size - 1 - i) for i in range(ran)))
        for slot, (gamma, iterations, accepted) in zip(slots, before, strict=True):
            assert gamma == ran or (slot.iterations, slot.accepted) == (iterations, accepted)


@every
@given(bursts=BURST, size=st.sampled_from([1, 6, 40]))
@settings(max_examples=4, deadline=None)
def test_what_is_saved_is_taken_up_and_saved_again(name, bursts, size):
    """Through JSON, as a file would hold it; a policy that keeps nothing says so in both directions."""
    _, checked = play(name, bursts, size, before=200)
    saved = json.loads(json.dumps(checked.policy.save()))
    other = MAKERS[name](seed=5)
    if not saved:
        with pytest.raises(ValueError, match="keeps no state"):
            other.load({"version": 1})
        return
    other.load(saved)
    assert json.loads(json.dumps(other.save())) == saved
    decision = other.hello(make_hello(candidates=CANDIDATES, start_gamma=0))
    assert check(decision, CANDIDATES) is None
    # Of two γ that are as good as each other the one that is in force stays, and a newcomer has none in force. A state
    # is fitted when it is taken up, so the one that it came from must be up to date, too.
    [pool] = checked.policy.pools.values()
    pool.fit()
    worth = pool.mean[bucket(size)]
    chosen = worth[CANDIDATES.index(decision.gamma_for(size))]
    assert chosen >= worth[pool.best[bucket(size)]] * (1 - MARGIN) or bursts


@every
@given(version=st.one_of(st.none(), st.integers(-3, 2), st.integers(4, 9), st.text(max_size=3)))
@settings(max_examples=10, deadline=None)
def test_a_state_of_another_version_is_refused_with_a_message(name, version):
    with pytest.raises(ValueError, match=r"version|keeps no state"):
        MAKERS[name](seed=1).load({"version": version, "pools": []})
