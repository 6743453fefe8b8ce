"""Trials: which γ is worth one, how long it lasts, and what is paid for it."""

from types import SimpleNamespace

import pytest

from sglang_nightjar.core.exploration import Exploration
from sglang_nightjar.core.messages import Telemetry

RECORD = Telemetry(1, 1, 10_000_000, batch_size=8, gamma=0, committed=8)


def pool(mean, optimistic, noise=0.03):
    latency = SimpleNamespace(noise=lambda bucket, gamma: noise, expected_ns=lambda size, gamma: 10e6)
    return SimpleNamespace(gammas=(0, 1, 3), mean=[mean], optimistic=[optimistic], latency=latency)


@pytest.mark.parametrize(
    ("mean", "optimistic", "tried"),
    [
        # The best is the planned one, and no other may be better than it looks.
        ((1.0, 0.8, 0.5), (1.3, 1.0, 1.005), None),
        # Both may be better by 20%; trying the first is expected to lose less.
        ((1.0, 0.9, 0.5), (1.0, 1.2, 1.2), 1),
        # The second is expected to lose as much more as it may gain more.
        ((1.0, 0.9, 0.89), (1.0, 1.02, 1.3), 2),
    ],
)
def test_the_chance_that_costs_least_is_taken(mean, optimistic, tried):
    exploration = Exploration(0.02)
    exploration.consider(pool(mean, optimistic), 0, 0, RECORD, 0.0)
    assert (exploration.trial and exploration.trial.column) == tried


def test_noise_and_few_requests_make_it_longer():
    def length(noise, batch_size):
        exploration = Exploration(0.02)
        chance = pool((1.0, 0.9), (1.0, 1.2), noise)
        exploration.consider(chance, 0, 0, RECORD._replace(batch_size=batch_size), 0.0)
        return exploration.trial.left

    assert length(0.0, 64) == 2 and length(0.06, 64) == 4 and length(1.0, 64) == 8 and length(0.0, 1) == 24


def test_it_is_paid_by_the_iteration_and_a_return_of_the_draft_beforehand():
    chance = pool((1.0, 0.9), (1.0, 1.2))
    exploration = Exploration(0.02)
    exploration.consider(chance, 0, 0, RECORD, 400e6)
    assert exploration.trial is None and exploration.credit == 32, "40 iterations' worth are not there"
    exploration.consider(chance, 0, 0, RECORD, 100e6)
    assert exploration.trial.left == 3 and exploration.credit == 22
    assert not exploration.follow(0, 0, True), "the plan has not arrived yet"
    assert exploration.credit == 22
    assert not exploration.follow(1, 0, True) and not exploration.follow(1, 0, False)
    assert exploration.follow(1, 0, True) is False and exploration.follow(1, 0, True)
    assert exploration.trial is None and exploration.credit == 18


def test_it_ends_where_the_batch_is_another_one_and_where_it_never_begins():
    def begun():
        exploration = Exploration(0.02)
        exploration.consider(pool((1.0, 0.9), (1.0, 1.2)), 0, 0, RECORD, 0.0)
        return exploration

    exploration = begun()
    assert not exploration.follow(1, 1, True) and exploration.follow(1, 2, True)
    exploration = begun()
    waited = next(count for count in range(1, 100) if exploration.follow(0, 0, True))
    assert waited == 4 * 3 + 16


def test_a_share_of_nothing_affords_nothing():
    assert not Exploration(0.0).can_afford_one()
    exploration = Exploration(0.5)
    exploration.credit = 1.0
    assert not exploration.can_afford_one()
    exploration.earn()
    exploration.earn()
    assert exploration.can_afford_one()
