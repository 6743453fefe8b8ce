"""``model`` and arrivals: how many requests it believes in."""

import statistics

import numpy as np
import pytest
from helpers.policy_load import make_hello

from sglang_nightjar.core.messages import Arrivals, Telemetry
from sglang_nightjar.policies.model import Model, ModelParams


def make() -> Model:
    return Model(ModelParams(objective="latency"))


def arrive(policy: Model, at_ns: int, requests: int = 1) -> None:
    """Reports come only for intervals in which anything arrived, as tokenizer processes send them."""
    policy.arrivals(Arrivals("s/tokenizer0/0", 1, "s", at_ns, 50_000_000, requests, 10))


def believed(times, until: float, policy: Model | None = None, dp_size: int = 1) -> float:
    """Requests per second that ``model`` believes in at ``until`` seconds, with an iteration every 20 ms."""
    policy = policy or make()
    hello = make_hello(dp_size=dp_size)
    policy.hello(hello)
    times = list(times)
    for tick in range(int(until * 50)):
        now = tick / 50
        while times and times[0] <= now:
            arrive(policy, int(1e9 * (times.pop(0) + 0.05)))
        policy.telemetry(hello.sender, Telemetry(tick + 1, int(1e9 * now), 20_000_000, 1, 0, 1))
    return 1e9 * policy.schedulers[hello.sender].pool.arrivals_per_ns


def poisson(rate: float, until: float, seed: int = 0):
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, int(rate * until)))


def test_few_requests_are_few():
    assert statistics.mean(believed(poisson(0.4, 60, s), 60) for s in range(6)) == pytest.approx(0.4, rel=0.5)


def test_many_requests_are_many():
    assert believed(poisson(8.0, 60), 60) == pytest.approx(8.0, rel=0.3)


def test_silence_says_that_nobody_comes():
    assert believed(poisson(8.0, 30), 90) < 0.1


def test_dp_ranks_share_a_server_s_requests():
    assert believed(poisson(8.0, 60), 60, dp_size=4) == pytest.approx(2.0, rel=0.3)


def test_a_report_from_far_ahead_is_forgotten():
    policy = make()
    policy.hello(make_hello())
    arrive(policy, 2**52, 3)
    assert believed(poisson(4.0, 60), 60, policy) == pytest.approx(4.0, rel=0.4)
