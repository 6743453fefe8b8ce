"""What prefills add to an iteration, against arrivals that are drawn."""

from random import Random

import numpy as np
import pytest

from sglang_nightjar.core.prefill_stalls import PrefillStalls


def test_is_what_poisson_arrivals_make_of_it():
    """One request in 20 ms on average; a prefill costs 5 ms, however many there are."""
    draw, stalls = Random(1), PrefillStalls()
    prefilled, ran, followed = False, dict.fromkeys((10.0, 30.0), 0), dict.fromkeys((10.0, 30.0), 0)
    for _ in range(20_000):
        decode = draw.choice((10.0, 30.0))
        wall = decode + 5.0 * prefilled
        stalls.add(prefilled, wall)
        prefilled = draw.expovariate(1 / 20.0) < wall
        ran[decode] += 1
        followed[decode] += prefilled
    found = stalls.added_ns(np.array([10.0, 30.0]), 5.0)
    # Its own estimate is of the newest hundred iterations, so a seventh is what chance allows.
    assert found == pytest.approx([5.0 * followed[decode] / ran[decode] for decode in ran], rel=0.15)
    assert 3 * found[0] > 1.3 * found[1], "three short iterations have more prefills than a long one"


def test_nothing_is_added_where_nothing_arrives():
    stalls = PrefillStalls()
    assert stalls.added_ns(np.array([1e7]), 5e6).tolist() == [0.0]
    stalls.add(False, 1e7)
    assert stalls.added_ns(np.array([1e7]), 5e6).tolist() == [0.0]


def test_a_prefill_before_every_iteration_stays_finite():
    stalls = PrefillStalls()
    for _ in range(2000):
        stalls.add(True, 1e7)
    found = stalls.added_ns(np.array([1e7, 1e9]), 5e6)
    assert found[0] == pytest.approx(5e6, rel=0.03) and found[1] == pytest.approx(5e6)
