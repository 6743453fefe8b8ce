"""How often drafts are accepted, by position."""

import numpy as np
import pytest

from sglang_nightjar.core.draft_acceptance import DraftAcceptance, expected_tokens


class TestDraftAcceptance:
    def feed(self, model, rates, iterations, size=8, seed=0, gamma=None):
        rng = np.random.default_rng(seed)
        for _ in range(iterations):
            hits, left = [], size
            for rate in rates[:gamma]:
                left = int(rng.binomial(left, rate))
                hits.append(left)
            model.add(size, tuple(hits))

    def test_rates_by_position_whatever_gamma_taught_them(self):
        model = DraftAcceptance(4)
        self.feed(model, (0.8, 0.6, 0.4, 0.5), 600, gamma=2)
        self.feed(model, (0.8, 0.6, 0.4, 0.5), 600, gamma=4, seed=1)
        assert [rate for rate, _ in model.rates()] == pytest.approx([0.8, 0.6, 0.4, 0.5], abs=0.04)
        assert model.changes <= 1

    def test_a_drop_is_followed_within_forty_iterations(self):
        model = DraftAcceptance(2)
        self.feed(model, (0.8, 0.8), 2000)
        self.feed(model, (0.3, 0.8), 40, seed=1)
        assert model.rates()[0][0] == pytest.approx(0.3, abs=0.08)

    def test_doubt_grows_while_nobody_looks(self):
        model = DraftAcceptance(1)
        self.feed(model, (0.8,), 500)
        before = model.rates()[0][1]
        model.iterations += 1000
        assert model.rates()[0][1] > 5 * before

    def test_expected_tokens(self):
        assert expected_tokens([0.5, 0.5], (0, 1, 2)) == [1.0, 1.5, 1.75]
