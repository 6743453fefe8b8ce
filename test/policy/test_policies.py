"""Every policy: only candidates, same seed same decisions, and no harm from absurd telemetry."""

import math
import sys
from collections import Counter

import pytest
from helpers.policy_load import Scheduler, make_hello
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_nightjar.core.messages import MAX_INT, Telemetry
from sglang_nightjar.core.policy import check
from sglang_nightjar.policies.ema import Ema, EmaParams
from sglang_nightjar.policies.goodput import Goodput, GoodputParams
from sglang_nightjar.policies.model import Model, ModelParams
from sglang_nightjar.policies.nightjar import Nightjar, NightjarParams
from sglang_nightjar.policies.off import Off
from sglang_nightjar.policies.static import Static, StaticParams
from sglang_nightjar.policies.table import Table, TableParams
from sglang_nightjar.policies.ucb import Ucb, UcbParams

MAKERS = {
    "off": Off,
    "static": lambda **kw: Static(StaticParams(gamma=4), **kw),
    "table": lambda **kw: Table(TableParams(vllm=([1, 4, 5], [9, 16, 2])), **kw),
    "ema": Ema,
    "ucb": Ucb,
    "ucb-accepted": lambda **kw: Ucb(UcbParams(reward="accepted", first=1), **kw),
    "goodput": Goodput,
    "goodput-profile": lambda **kw: Goodput(GoodputParams(profile=((1, 0, 9, 5e6), (8, 5, 90, 9e6))), **kw),
    "model": Model,
    "model-latency": lambda **kw: Model(ModelParams(objective="latency", explore=0.2, pool=False), **kw),
    "model-slo": lambda **kw: Model(ModelParams(objective="slo", tpot_ms=10.0, ttft_ms=500.0), **kw),
    "nightjar": Nightjar,
    "nightjar-costs": lambda **kw: Nightjar(NightjarParams(bin_iterations=2, switch_cost_ms=50.0, pool=False), **kw),
}
policies = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
candidate_sets = st.sets(st.integers(0, 64), min_size=1, max_size=8).map(lambda found: tuple(sorted(found)))
numbers = st.one_of(
    st.integers(-10, 100), st.sampled_from([-MAX_INT, MAX_INT, math.nan, math.inf, -math.inf, 0.5, 2**70])
)


@st.composite
def absurd_records(draw):
    values = [draw(numbers) for _ in Telemetry._fields[:-1]]
    return Telemetry(*values, accepted=tuple(draw(st.lists(st.integers(-5, 500), max_size=6))))


@policies
@given(candidates=candidate_sets, data=st.data())
@settings(max_examples=25)
def test_only_candidates_whatever_comes(make, candidates, data):
    policy = make(seed=1)
    scheduler = Scheduler(policy, make_hello(candidates=candidates))
    assert check(scheduler.plan, candidates) is None
    for size, absurd in data.draw(st.lists(st.tuples(st.integers(1, 2000), st.none() | absurd_records()), max_size=60)):
        if absurd is None:
            scheduler.step(size)
        else:
            decision = policy.telemetry(scheduler.hello.sender, absurd)
            assert decision is None or check(decision, candidates) is None
    assert all(check(decision, candidates) is None for decision in scheduler.decisions)
    policy.estimates()


@policies
def test_same_seed_same_decisions(make):
    def run(sender):
        scheduler = Scheduler(make(seed=7), make_hello(sender))
        for size in [1] * 300 + [24] * 300 + [1] * 100:
            scheduler.step(size)
        return scheduler.decisions

    first = run("s/dp0/one")
    assert first == run("s/dp0/two")


def test_another_seed_draws_other_arms():
    def run(seed):
        scheduler = Scheduler(Nightjar(seed=seed), make_hello())
        for _ in range(200):
            scheduler.step(4)
        return scheduler.gammas

    assert run(1) != run(2)


@policies
def test_state_stays_small(make):
    policy = make(seed=3)
    scheduler = Scheduler(policy, make_hello())
    for index in range(3000):
        scheduler.step(1 + index % 600)
    before = _size(policy)
    for index in range(6000):
        scheduler.step(1 + index % 600)
    assert before < 1 << 20
    assert _size(policy) <= before * 1.1
    for index in range(500):
        hello = make_hello(f"s/dp0/{index}", target=f"model-{index}")
        policy.hello(hello)
        policy.goodbye(hello.sender)
    assert _size(policy) < 1 << 20


def _size(thing, seen=None):
    """Bytes reachable from ``thing``."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, type):
        return 0
    seen.add(id(thing))
    size = sys.getsizeof(thing)
    if isinstance(thing, dict):
        return size + sum(_size(k, seen) + _size(v, seen) for k, v in thing.items())
    if isinstance(thing, list | tuple | set):
        return size + sum(_size(item, seen) for item in thing)
    slots = [getattr(thing, name, None) for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    return size + _size(getattr(thing, "__dict__", {}), seen) + sum(_size(item, seen) for item in slots)


@policies
def test_records_of_strangers_change_nothing(make):
    policy = make(seed=1)
    scheduler = Scheduler(policy, make_hello())
    record = scheduler.step(4)
    assert policy.telemetry("s/dp9/nobody", record) is None
    policy.goodbye("s/dp9/nobody")


def test_off_and_static_and_table():
    assert Off().hello(make_hello()).gamma_for(7) == 0
    assert Off().hello(make_hello(candidates=(2, 3))).gamma_for(7) == 2
    assert Static().hello(make_hello(start_gamma=3)).gamma_for(7) == 3
    assert Static(StaticParams(gamma=4)).hello(make_hello()).gamma_for(7) == 3
    table = Table(TableParams(trtllm={"4": 5, 16: 2})).hello(make_hello())
    assert [table.gamma_for(size) for size in (1, 4, 5, 16, 17, 999)] == [5, 5, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="exactly one"):
        TableParams(vllm=(), trtllm={})


class TestEma:
    def drive(self, accepted, steps=200, size=1, policy=None, candidates=(0, 1, 3, 7)):
        policy = policy or Ema()
        plan = policy.hello(make_hello(candidates=candidates, start_gamma=3))
        for index in range(steps):
            gamma = plan.gamma_for(size)
            counts = tuple(min(size, max(0, round(size * (accepted - i)))) for i in range(gamma))
            plan = policy.telemetry("s/dp0/a", Telemetry(index, index, 1, size, gamma, size, accepted=counts)) or plan
        return plan

    def test_rises_when_all_is_accepted_and_falls_when_nothing_is(self):
        assert self.drive(7).gamma_for(1) == 7
        assert self.drive(0).gamma_for(1) == 1
        assert self.drive(7, size=8).gamma_for(8) == 3

    def test_a_hello_again_changes_nothing_unless_its_candidates_do(self):
        policy = Ema()
        assert self.drive(0, policy=policy).gamma_for(1) == 1
        assert policy.hello(make_hello(candidates=(0, 1, 3, 7), start_gamma=3)).gamma_for(1) == 1
        assert policy.hello(make_hello(candidates=(0, 3, 7), start_gamma=3)).gamma_for(1) == 3

    def test_zero_is_left_again_to_probe(self):
        policy = Ema()
        plan = policy.hello(make_hello(candidates=(0, 1, 3, 7), start_gamma=3))
        seen = Counter()
        for index in range(200):
            gamma = plan.gamma_for(8)
            seen[gamma] += 1
            record = Telemetry(index, index, 1, 8, gamma, 8, accepted=(0,) * gamma)
            plan = policy.telemetry("s/dp0/a", record) or plan
        assert set(seen) == {0, 1, 3}
        assert seen[0] >= 20 and seen[1] >= 20

    def test_another_gamma_earns_no_credit(self):
        policy = Ema()
        policy.hello(make_hello(candidates=(0, 1, 3, 7), start_gamma=3))
        for index in range(300):
            assert policy.telemetry("s/dp0/a", Telemetry(index, index, 1, 1, 7, 8, accepted=(1,) * 7)) is None

    def test_same_as_sglangs_own(self):
        """Against the installed rule itself, on random acceptance that drifts."""
        adaptive = pytest.importorskip("sglang.srt.speculative.adaptive_spec_params")
        from random import Random

        for seed in range(5):
            random = Random(seed)
            theirs = adaptive.AdaptiveSpeculativeParams(initial_steps=3)
            ours = Ema()
            plan = ours.hello(make_hello(candidates=(0, 1, 3, 7), start_gamma=3))
            level = 0.5
            for index in range(2000):
                level = min(1.0, max(0.0, level + random.uniform(-0.05, 0.05)))
                size = random.choice([1, 3, 8, 20, 40, 70])
                gamma = theirs.get_steps_for_batch(size)
                assert plan.gamma_for(size) == gamma
                lengths = []
                for _ in range(size):
                    length = 0
                    while length < gamma and random.random() < level:
                        length += 1
                    lengths.append(length)
                counts = tuple(sum(length > i for length in lengths) for i in range(gamma))
                theirs.on_verify_complete(lengths, size)
                record = Telemetry(index, index, 1, size, gamma, size + sum(lengths), accepted=counts)
                plan = ours.telemetry("s/dp0/a", record) or plan

    @pytest.mark.parametrize(
        "slots",
        [{}, {"0": {"candidate_steps": [1]}}, {"1": {}}, {"1": {"candidate_steps": []}},
         {"1": {"candidate_steps": [1], "ceiling": 2}}, {"1": {"candidate_steps": [1], "up_hysteresis": "x"}}],
    )  # fmt: skip
    def test_wrong_slots_are_refused(self, slots):
        with pytest.raises(ValueError, match="slots"):
            EmaParams(slots=slots)


class TestNightjar:
    def run(self, policy=None, size=4, steps=4000, **changes):
        policy = policy or Nightjar(seed=5)
        scheduler = Scheduler(policy, make_hello(**changes), seed=5)
        for _ in range(steps):
            scheduler.step(size)
        return scheduler

    @pytest.mark.parametrize("size", [1, 8, 64])
    def test_finds_the_best_gamma_of_a_batch_size(self, size):
        scheduler = self.run(size=size, steps=6000)
        shares = Counter(scheduler.gammas[-3000:])
        assert shares.most_common(1)[0][0] == scheduler.best_gamma(size)
        # A bin is a few iterations, so an arm that is 8% worse may look better for a while.
        rates = {g: sum(0.8**i for i in range(g + 1)) / scheduler.cost_ns(size, g) for g in scheduler.hello.candidates}
        assert sum(count * rates[gamma] for gamma, count in shares.items()) > 0.95 * 3000 * max(rates.values())

    def test_low_load_drafts_and_a_surge_does_not_and_back(self):
        scheduler = self.run(Nightjar(seed=2), size=1, steps=3000)
        for _ in range(3000):
            scheduler.step(64)
        surge = Counter(scheduler.gammas[-500:])
        for _ in range(500):
            scheduler.step(1)
        back = Counter(scheduler.gammas[-400:])
        assert scheduler.best_gamma(64) == 0 and scheduler.best_gamma(1) > 1
        assert surge.most_common(1)[0][0] == 0
        assert back.most_common(1)[0][0] == scheduler.best_gamma(1)

    def test_an_arm_is_locked_for_its_bin(self):
        """With plans that are in force at once, γ changes only with a new bin."""
        for size, length in ((1, 10), (4, 3), (30, 2)):
            policy = Nightjar(NightjarParams(bin_iterations=10), seed=1)
            scheduler = Scheduler(policy, make_hello(), delay=0)
            for _ in range(100 * length + 1):
                scheduler.step(size)
            # The first iteration ran the start γ; the first bin opened after it.
            runs = scheduler.gammas[1:]
            assert all(len(set(runs[i : i + length])) == 1 for i in range(0, 100 * length, length))
            assert any(len(set(runs[i : i + length + 1])) == 2 for i in range(0, 99 * length, length))

    def test_a_surge_into_sizes_never_seen_is_learnt_within_one_bin_of_each_arm(self):
        for seed in range(20):
            policy = Nightjar(seed=seed)
            scheduler = Scheduler(policy, make_hello(), seed=seed)
            for _ in range(500):
                scheduler.step(1)
            before = len(scheduler.gammas)
            for _ in range(20):
                scheduler.step(64)
            assert 0 in scheduler.gammas[before:], "γ=0 was not tried"
            for _ in range(80):
                scheduler.step(64)
            assert scheduler.gammas[-60:].count(0) > 30

    def test_arms_that_other_sizes_rule_out_are_not_tried_first(self):
        from sglang_nightjar.core.bin_greedy import Bucket, Cell, likely

        arms = (0, 1, 3, 5)

        def known(best: int, bins: int) -> Bucket:
            return Bucket({arm: Cell(1.0 if arm == best else 2.0, 1.0, 9) for arm in arms}, bins)

        small, new, large = known(3, 9), Bucket(), known(1, 9)
        assert likely([small, new, Bucket()], 1, arms) == (0, 1, 3)
        assert likely([Bucket(), new, large], 1, arms) == (1, 3, 5)
        assert likely([small, new, large], 1, arms) == (1, 3)
        assert likely([known(3, 2), new, Bucket()], 1, arms) == arms, "a bucket that hardly knows itself says nothing"
        assert likely([known(0, 9), new, known(5, 9)], 1, arms) == arms, "a contradiction says nothing"

    def test_the_iteration_that_caught_up_is_not_charged_twice(self):
        policy = Nightjar(seed=1)
        hello = make_hello(switch_costs=((64, 64, 10**9),))
        policy.hello(hello)
        for index, (gamma, ns) in enumerate([(3, 10**6), (0, 10**6), (3, 10**9), (3, 10**6)] * 30):
            record = Telemetry(index, index * 10**9, ns, 4, gamma, 4, lag_max=5 if gamma == 0 else 0)
            policy.telemetry(hello.sender, record)
        assert policy.estimates()["t d cpu 1"]["4"]["3"] == 250_000

    def test_an_arm_that_cannot_run_does_not_hold_the_bucket(self):
        """The draft is away: γ > 0 is planned and 0 runs."""
        policy = Nightjar(seed=2)
        hello = make_hello()
        policy.hello(hello)
        wanted = []
        for index in range(400):
            decision = policy.telemetry(hello.sender, Telemetry(index, index * 10**7, 10**7, 4, 0, 4))
            wanted.append(wanted[-1] if decision is None else decision.gamma_for(4))
        assert set(wanted) == {0, 1, 3, 5}
        assert wanted[-200:].count(0) > 120

    def test_exploration_fades_as_one_over_the_bin_of_its_block(self):
        """Share of the b-th bins that explore: 1/b, over many seeds; a new block begins anew."""
        from random import Random

        from sglang_nightjar.core.bin_greedy import Bucket, Cell, next_bin

        random = Random(0)
        for bins, turn in ((0, 1), (1, 1), (2, 2), (3, 1), (4, 2), (6, 4), (7, 1), (262, 8)):
            bucket = Bucket({0: Cell(1.0, 1.0, 1)}, bins, {0, 1})
            assert bucket.turn == turn
            explored = sum(next_bin(bucket, (0, 1), True, 0.0, random).explores for _ in range(20_000))
            assert abs(explored / 20_000 - 1 / turn) < 0.012

    def test_switching_on_is_charged(self):
        from sglang_nightjar.core.bin_greedy import Bucket, Cell, switch_cost

        bucket = Bucket({0: Cell(10.0, 1.0, 9), 1: Cell(9.0, 1.0, 9), 3: Cell(9.5, 1.0, 9)})
        arms = (0, 1, 3)
        assert bucket.best(arms, True, 3.0) == 1
        assert bucket.best(arms, False, 0.0) == 1
        # 9 + 1.2/1 > 9.5 + 1.2/3 < 10: the cost is spread over more tokens.
        assert bucket.best(arms, False, 1.2) == 3
        assert bucket.best(arms, False, 3.0) == 0
        assert bucket.best((3,), False, 99.0) == 3
        table = ((128, 32, 18), (512, 64, 102), (512, 32, 60), (128, 64, 30))
        assert [switch_cost(table, *cell) for cell in ((128, 32), (512, 64), (0, 1), (600, 99))] == [18, 102, 18, 102]
        assert [switch_cost(table, *cell) for cell in ((320, 32), (128, 48), (320, 48))] == [39, 24, (39 + 66) / 2]
        assert switch_cost((), 5, 5) == 0

    def test_credit_goes_to_the_gamma_of_the_record(self):
        policy = Nightjar(seed=1)
        policy.hello(make_hello())
        for index in range(50):
            policy.telemetry("s/dp0/a", Telemetry(index, index, 1000, 4, 3, 8))
        policy.telemetry("s/dp0/a", Telemetry(51, 51, 1000, 4, 7, 8))
        assert policy.estimates() == {"t d cpu 1": {"4": {"3": 125}}}

    def test_iterations_shared_with_a_prefill_are_kept_out(self):
        policy = Nightjar(seed=1)
        policy.hello(make_hello())
        for index in range(50):
            policy.telemetry(
                "s/dp0/a", Telemetry(index, index, 10**6 * (1 + index % 2), 4, 3, 8, prefill_tokens=index % 2)
            )
        assert policy.estimates() == {"t d cpu 1": {"4": {"3": 125_000}}}

    def test_schedulers_of_one_pool_learn_together(self):
        policy = Nightjar(seed=1)
        self.run(policy, steps=2000)
        plan = policy.hello(make_hello("s/dp1/b", start_gamma=0))
        assert plan.gamma_for(4) > 0
        other = policy.hello(make_hello("s/dp2/c", hardware="another", start_gamma=0))
        assert other.gamma_for(4) == 0
        alone = Nightjar(NightjarParams(pool=False), seed=1)
        self.run(alone, steps=2000)
        assert alone.hello(make_hello("s/dp1/b", start_gamma=0)).gamma_for(4) == 0

    @pytest.mark.parametrize("burst", ["fast", "slow", "mixed"])
    def test_recovers_from_a_burst_of_absurd_times(self, burst):
        policy = Nightjar(seed=3)
        scheduler = self.run(policy, size=4, steps=2000)
        for index in range(200):
            ns = {"fast": 1, "slow": 59_000_000_000, "mixed": (1, 59_000_000_000)[index % 2]}[burst]
            gamma = (0, 1, 3, 5)[index % 4]
            policy.telemetry("s/dp0/a", Telemetry(index, index, ns, 4, gamma, 4))
        for _ in range(4000):
            scheduler.step(4)
        assert Counter(scheduler.gammas[-1500:]).most_common(1)[0][0] == scheduler.best_gamma(4)

    def test_a_slow_first_iteration_is_forgotten(self):
        from sglang_nightjar.core.bin_greedy import Cell

        cell = Cell()
        cell.add(10_000_000_000, 4, 4096)
        for _ in range(200):
            cell.add(10_000_000, 4, 4096)
        assert cell.loss < 2 * 2_500_000
