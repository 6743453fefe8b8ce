"""``model`` on a server that leaves drafts out of verification: rows cost what they cost, however many γ would have."""

from collections import Counter

import numpy as np
import pytest
from helpers.policy_load import make_hello

from sglang_nightjar.core.latency_model import LatencyModel
from sglang_nightjar.core.messages import Telemetry
from sglang_nightjar.core.objective import Objective
from sglang_nightjar.core.speculation import Speculation
from sglang_nightjar.policies.model import Model

GAMMAS = (0, 1, 2, 3, 4, 5)
#: How likely a draft is to be accepted, on average; single ones differ widely.
RATES, CERTAINTY = np.array([0.61, 0.58, 0.64, 0.62, 0.5]), 4.0


def pass_ms(rows: float) -> float:
    """Two cores with AVX-512: weights up to a dozen rows, arithmetic beyond."""
    return 22.0 + 1.45 * max(0.0, rows - 10)


class Server:
    """Verifies the likeliest drafts, as many as bring the most tokens per second, as cpu/trim.py does."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.at_ns = self.iteration = 0

    def step(self, size: int, gamma: int) -> Telemetry:
        rates = RATES[:gamma]
        chances = self.random.beta(rates * CERTAINTY, (1 - rates) * CERTAINTY, (size, gamma))
        rest_ms = 4.0 + 0.8 * gamma + 0.05 * gamma * size if gamma else 1.0
        reached = chances.cumprod(1).T.ravel()
        order = np.argsort(-reached, kind="stable")
        tokens = size + np.concatenate(([0.0], reached[order].cumsum()))
        ms = np.array([pass_ms(rows) + rest_ms for rows in range(size, size * (gamma + 1) + 1)])
        kept = int(np.argmax(tokens / ms))
        verified = np.isin(np.arange(size * gamma), order[:kept]).reshape(gamma, size).T
        agrees, coins = self.random.random(chances.shape) < chances, self.random.random(chances.shape) < chances
        accepted = np.logical_and.accumulate(agrees & verified, axis=1)
        likely = np.logical_and.accumulate(np.where(verified, agrees, coins), axis=1)
        took = int(1e6 * ms[kept] * self.random.normal(1, 0.04))
        self.at_ns, self.iteration = self.at_ns + took, self.iteration + 1
        return Telemetry(
            self.iteration, self.at_ns, took, size, gamma, size + int(accepted.sum()), rows=size + kept,
            accepted=tuple(int(number) for number in likely.sum(0)),
        )  # fmt: skip

    def tokens_per_s(self, size: int, gamma: int, iterations: int = 300) -> float:
        records = [self.step(size, gamma) for _ in range(iterations)]
        return sum(record.committed for record in records) / sum(record.iteration_ns for record in records) * 1e9


def test_a_row_has_one_price_whichever_gamma_it_was_computed_for() -> None:
    """Of three γ at twelve requests, all of which computed some twenty rows: what would γ=0 take, which computes 12?"""
    server, told, guessed = Server(1), LatencyModel(GAMMAS), LatencyModel(GAMMAS)
    for now in range(200):
        for size, gamma in ((12, 2), (12, 3), (12, 5), (4, 3), (1, 5)):
            record = server.step(size, gamma)
            told.add(size, gamma, record.iteration_ns, 0, now, rows=record.rows)
            guessed.add(size, gamma, record.iteration_ns, 0, now)
    told.fit(200)
    guessed.fit(200)
    truth = 1e6 * (pass_ms(12) + 1.0)
    errors = [abs(model.expected_ns(12, 0) / truth - 1) for model in (told, guessed)]
    assert errors[0] < 0.15 and errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_best_gamma_where_rows_are_dear(seed: int) -> None:
    server, policy = Server(seed), Model(seed=seed)
    decision = policy.hello(make_hello(candidates=GAMMAS, start_gamma=3, max_batch_size=32))
    assert decision.trim
    for size, iterations in ((1, 80), (4, 80), (10, 80), (32, 60), (1, 200), (4, 150), (12, 250), (12, 250)):
        ran: Counter[int] = Counter()
        tokens = ns = 0
        for _ in range(iterations):
            record = server.step(size, decision.gamma_for(size))
            ran[record.gamma] += 1
            tokens, ns = tokens + record.committed, ns + record.iteration_ns
            decision = policy.telemetry("s/dp0/a", record) or decision
    best = max(server.tokens_per_s(12, gamma) for gamma in GAMMAS)
    assert tokens / ns * 1e9 > 0.97 * best, ran


def test_what_was_left_out_outlives_a_restart() -> None:
    server, pool = Server(2), Speculation(GAMMAS, Objective("throughput"))
    for _ in range(200):
        pool.learn(server.step(12, 5))
    other = Speculation(GAMMAS, Objective("throughput"))
    other.restore(pool.state())
    assert np.allclose(other.verified.shares(), pool.verified.shares())
    assert pool.verified.shares().min() < 0.4
    pool.fit()
    assert np.allclose(other.latency.ns[10], pool.latency.ns[10], rtol=0.02)
