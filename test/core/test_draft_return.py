"""A draft that was left behind: what was forgone against what its return costs."""

from dataclasses import replace
from types import SimpleNamespace

from helpers.policy_load import make_hello

from sglang_nightjar.core.draft_return import DraftReturn
from sglang_nightjar.core.messages import Residency, Telemetry
from sglang_nightjar.core.speculation import Line

AWAY = Telemetry(1, 1, 10_000_000, batch_size=4, gamma=0, committed=4, residency=Residency.PARKED, lag_total=100)
BACK = AWAY._replace(residency=Residency.RESIDENT)


def made(mean=(1.0, 2.0), cost_ms=90.0, candidates=(0, 3)):
    latency = SimpleNamespace(expected_ns=lambda size, gamma: 10e6)
    pool = SimpleNamespace(gammas=candidates, mean=[mean], latency=latency, catch_up=Line())
    hello = make_hello(candidates=candidates, switch_costs=((1 << 20, 64, int(cost_ms * 1e6)),))
    return DraftReturn(pool), pool, hello


def test_it_is_due_once_as_much_was_forgone_as_its_return_costs():
    draft, _, hello = made(cost_ms=22.0)
    assert draft.is_due and draft.cost_ns(4, hello) == 0 and not draft.follow(BACK, 0, hello)
    # Half of each 10 ms is forgone: 22 ms after the fifth.
    assert draft.follow(AWAY, 0, hello) and not draft.is_due and draft.cost_ns(4, hello) == 22e6
    for count in (2, 3, 4):
        assert not draft.follow(AWAY, 0, hello) and draft.forgone_ns == count * 5e6
    assert draft.follow(AWAY, 0, hello) and draft.is_due


def test_where_four_iterations_pay_for_the_return_it_does_not_wait():
    draft, pool, hello = made(cost_ms=20.0)
    assert draft.follow(AWAY._replace(residency=Residency.CATCHING_UP), 0, hello) and not draft.is_due
    assert draft.pays_soon(0, hello)
    draft.follow(AWAY, 0, hello)
    assert draft.is_due and draft.forgone_ns == 5e6
    pool.mean[0] = (1.0, 1.9)
    assert not draft.pays_soon(0, hello)
    # Where nothing is forgone nothing pays, whatever a return costs.
    pool.mean[0] = (1.0, 1.0)
    assert not draft.pays_soon(0, make_hello(candidates=(0, 3)))


def test_its_cost_is_that_of_the_positions_that_requests_are_behind_together():
    draft, _, hello = made()
    hello = replace(hello, switch_costs=tuple((n, b, n * b * 1000) for n in (1, 64, 4096) for b in (1, 8, 64)))
    draft.follow(AWAY._replace(lag_max=90), 0, hello)
    assert draft.cost_ns(4, hello) == 100_000


def test_nothing_is_forgone_where_no_draft_would_pay():
    draft, pool, hello = made()
    draft.follow(AWAY, 0, hello)
    pool.mean[0] = (1.0, 1.001)
    draft.follow(AWAY, 0, hello)
    assert draft.forgone_ns == 0 and not draft.is_due


def test_what_coming_back_took_is_what_the_next_time_costs():
    draft, pool, hello = made()
    draft.follow(AWAY, 0, hello)
    catching_up = AWAY._replace(residency=Residency.CATCHING_UP, iteration_ns=35_000_000)
    draft.follow(catching_up, 0, hello)
    # The last piece comes in front of an iteration that drafts already: what that takes anyhow is not the return's.
    pool.latency.expected_ns = lambda size, gamma: 10e6 + gamma * 5e6
    draft.follow(catching_up._replace(gamma=3, iteration_ns=30_000_000), 0, hello)
    draft.follow(catching_up._replace(prefill_tokens=50, iteration_ns=90_000_000), 0, hello)
    assert draft.follow(BACK, 0, hello) and draft.is_due and draft.forgone_ns == 0
    assert pool.catch_up.expected(100) == 30e6
    draft.follow(AWAY, 0, hello)
    assert draft.cost_ns(4, hello) == 30e6


def test_a_return_that_was_broken_off_is_not_charged_to_the_next_one():
    draft, pool, hello = made()
    catching_up = AWAY._replace(residency=Residency.CATCHING_UP, iteration_ns=70_000_000)
    for record in (AWAY, catching_up, AWAY, catching_up._replace(iteration_ns=30_000_000), BACK):
        draft.follow(record, 0, hello)
    assert pool.catch_up.expected(100) == 20e6


def test_where_zero_is_no_candidate_it_never_keeps_drafts_off():
    draft, _, hello = made(candidates=(1, 3))
    draft.follow(AWAY, 0, hello)
    assert draft.parked and draft.is_due
