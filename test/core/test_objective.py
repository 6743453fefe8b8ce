"""What a γ is worth."""

import numpy as np

from sglang_nightjar.core.objective import Objective, worth


class TestObjective:
    SIZES, TOKENS = np.array([1.0, 32.0]), np.array([1.0, 2.0])
    NS = np.array([[1e7, 1.5e7], [2e7, 5e7]])

    def best(self, objective, arrivals=0.0, variance=(0.0, 0.5)):
        found = worth(objective, self.SIZES, self.NS, self.TOKENS, np.array(variance), arrivals, 0.0)
        return found.argmax(1).tolist()

    def test_throughput_is_tokens_over_time(self):
        assert self.best(Objective()) == [1, 0]

    def test_latency_counts_those_who_wait_for_an_iteration_to_end(self):
        assert self.best(Objective("latency")) == [1, 0]
        # 1 request runs, and 10 arrive in an iteration: the shorter one it is.
        assert self.best(Objective("latency"), arrivals=1e-6) == [0, 0]

    def test_slo_prefers_what_nearly_everybody_meets(self):
        """9 ms a token: 2 tokens in 15 ms meet it, 1 in 10 ms never does."""
        assert self.best(Objective("slo", tpot_ns=9e6)) == [1, 0]
        # 10.5 ms: both do, but tokens that come so unevenly miss it often.
        assert self.best(Objective("slo", tpot_ns=10.5e6), variance=(0.0, 60.0))[0] == 0
