"""How long iterations take: few cells say much of all, and a machine that others share is seen through."""

from random import Random

import numpy as np
import pytest

from sglang_nightjar.core.latency_model import SIZES, LatencyModel, bucket, nonnegative


def test_follows_a_context_that_grows():
    """192 requests that began together: 200 more tokens of context an iteration, which cost 17% of it in the end."""

    def took(gamma, context):
        return 6e6 + 2e6 * gamma + 32.0 * context

    model = LatencyModel((0, 1))
    for now in range(400):
        gamma, context = int(now % 8 == 0), 10_000 + 200 * now
        model.add(192, gamma, took(gamma, context), context, now)
    model.fit(400)
    found = model.expected_ns(192, 0) / model.expected_ns(192, 1)
    assert found == pytest.approx(took(0, context) / took(1, context), rel=0.005)


class TestLatencyModel:
    def test_few_cells_say_much(self):
        """Nine cells of a roofline, and the others are within 12%."""

        def truth(size, gamma):
            return 1e6 * (10 + 1.0 * gamma + 0.05 * size + 0.2 * max(0, size * (gamma + 1) - 64))

        model = LatencyModel((0, 1, 3, 5))
        for index in range(30):
            for size in (1, 8, 40):
                for gamma in (0, 1, 5):
                    model.add(size, gamma, truth(size, gamma), 0, index)
        model.fit(30)
        for size in (1, 3, 8, 24, 40):
            for gamma in (0, 1, 3, 5):
                assert model.expected_ns(size, gamma) == pytest.approx(truth(SIZES[bucket(size)], gamma), rel=0.12)

    def test_error_bars_shrink_where_it_looked(self):
        model = LatencyModel((0, 3))
        for index in range(50):
            model.add(8, 0, 1e7, 800, index)
        model.fit(50)
        seen, unseen = model.deviation[bucket(8)]
        assert seen < 0.01 < 0.05 < unseen

    def test_iterations_of_one_slow_second_say_little(self):
        """24 requests, which take 58 ms, are seen while the machine takes half as long again: 88 ms."""
        random, model, now = Random(1), LatencyModel((0, 1)), 0

        def stretch(size, pace, length=32):
            nonlocal now
            for _ in range(length):
                now += 1
                model.add(size, 0, 1e6 * (20 + 1.6 * size) * pace * random.gauss(1, 0.03), 0, now)

        for pace in (0.9, 1.1, 0.85, 1.2, 0.95, 1.15, 0.8, 1.05):
            stretch(32, pace)
        model.fit(now)
        assert model.alike > 10
        stretch(24, 1.5, 16)
        model.fit(now)
        # Less than half of it is believed, and not firmly.
        assert model.ns[bucket(24), 0] < 73e6 and model.deviation[bucket(24), 0] > 0.04

    def test_what_varies_by_itself_is_no_pace(self):
        random, model = Random(2), LatencyModel((0, 1))
        for now in range(2000):
            model.add(8, 0, 1e7 * random.gauss(1, 0.1), 0, now)
        assert model.alike < 2.5 and abs(model.pace) < 0.02

    def test_a_pace_that_all_share_is_taken_off(self):
        """γ=1 takes a fifth longer than γ=0, and is only seen while the machine is a quarter faster: less than γ=0."""
        random, model, now = Random(3), LatencyModel((0, 1)), 0
        for round_ in range(60):
            fast = 0.75 if round_ % 4 == 3 else 1.0
            for _ in range(40):
                now += 1
                gamma = int(fast < 1 and now % 40 > 20)
                model.add(8, gamma, 1e7 * (1 + 0.2 * gamma) * fast * random.gauss(1, 0.02), 0, now)
            model.fit(now)
        assert 1.04 < model.expected_ns(8, 1) / model.expected_ns(8, 0) < 1.25

    def test_larger_batches_and_fewer_rows_are_no_pace(self):
        """Sizes wander within a bucket, and rows with what is left out: stretches differ, and the machine does not.

        γ=0 runs where before it γ=2 had few rows left. Its times are its own, not those of a fast machine.
        """
        random, model, now = Random(4), LatencyModel((0, 1, 2)), 0

        def stretch(size, gamma, rows, length=40):
            nonlocal now
            for _ in range(length):
                now += 1
                ns = 1e6 * (20 + 0.5 * size + 1.2 * max(0, rows - 12)) * random.gauss(1, 0.01)
                model.add(size, gamma, ns, 0, now, rows=rows)
            model.fit(now)

        for size in (1, 4, 8, 12, 16, 24, 28, 32):
            for gamma in (2, 1, 0):
                stretch(size, gamma, (gamma + 1) * size)
        for size, left in ((20, 60), (23, 30), (21, 25), (22, 60), (20, 30), (23, 55), (21, 60), (20, 25)) * 2:
            stretch(size, 2, left)
        stretch(21, 2, 24)
        stretch(21, 0, 21, 20)
        assert model.alike < 6 and abs(model.pace) < 0.03
        assert 37e6 < model.cells[bucket(21), 0].ns < 43e6

    def test_no_parameter_is_negative(self):
        rng = np.random.default_rng(0)
        for _ in range(20):
            rows = rng.random((30, 5))
            gram, target = rows.T @ rows + 1e-6 * np.eye(5), rows.T @ rng.standard_normal(30)
            x = nonnegative(gram, target, np.ones(5), 5000)
            gradient = gram @ x - target
            assert (x >= 0).all() and (gradient > -1e-3).all() and abs(gradient[x > 1e-3]).max(initial=0) < 1e-3
