"""Prometheus series: totals that others count become counters, also when those start again."""

import pytest
from observe.examples import answer, policy, rank
from prometheus_client import CollectorRegistry

from sglang_nightjar.observe.policy_metrics import PolicyMetrics
from sglang_nightjar.observe.rank_metrics import RankMetrics
from sglang_nightjar.observe.status import PolicySide


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_series_of_a_rank(registry: CollectorRegistry) -> None:
    status = rank()
    metrics = RankMetrics(lambda: status, registry)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"nightjar:{name}", {"rank": "0", **labels})

    metrics.update()
    assert value("gamma") == 3
    assert value("steered") == 1
    assert value("seconds_by_gamma_total", gamma="0") == 1.5
    assert value("gamma_switches_total", **{"from": "0", "to": "3", "source": "policy", "reason": "plan"}) == 2
    assert value("policy_round_trip_seconds", quantile="0.5") == pytest.approx(800e-6)
    assert value("policy_round_trip_seconds", quantile="0.99") == pytest.approx(4000e-6)
    assert value("agent_overhead_seconds", quantile="0.99") == pytest.approx(30e-6)
    assert value("frames_rejected_total") == 2
    assert value("kv_capacity_tokens") == 16384
    assert value("draft_device_bytes") == 1000
    assert (value("residency", state="RESIDENT"), value("residency", state="OFFLOADED")) == (1, 0)
    assert (value("offloads_total"), value("reloads_total"), value("kv_tokens_moved_total")) == (3, 2, 40)
    assert value("residency_failures_total") == 2

    status = rank(source="fallback", seconds_by_gamma={"0": 1.5, "3": 3.5, "5": 0.5})
    metrics.update()
    assert value("steered") == 0
    assert value("seconds_by_gamma_total", gamma="3") == 3.5
    assert value("seconds_by_gamma_total", gamma="5") == 0.5
    # Accepted length, the target's own token included: (verified + accepted) / verified.
    verified, accepted = value("verified_requests_total"), value("accepted_draft_tokens_total")
    assert verified and accepted and (verified + accepted) / verified == pytest.approx(300 / 180)


def test_a_total_that_starts_again_keeps_its_counter_growing(registry: CollectorRegistry) -> None:
    status = rank(iterations=100)
    metrics = RankMetrics(lambda: status, registry)
    metrics.update()
    status = rank(iterations=30)
    metrics.update()
    assert registry.get_sample_value("nightjar:iterations_total", {"rank": "0"}) == 130


def test_series_of_the_policy_process(registry: CollectorRegistry) -> None:
    metrics = PolicyMetrics(registry)
    counters = {"policy_swaps": 0, "policy_restarts": 0}
    metrics.update(PolicySide("running", answer()), counters)
    where = {"policy": "static", "pool": "pool", "bucket": "1-4", "gamma": "3"}
    assert registry.get_sample_value("nightjar:estimated_seconds_per_token", where) == pytest.approx(0.004)
    assert registry.get_sample_value("nightjar:policy_errors_total") == 2
    rates = policy("ema", estimates={"s": {"1": {"3": 1.4}}}, estimates_of="accepted draft tokens per request")
    metrics.update(PolicySide("running", {**answer(), "policy": rates}), {**counters, "policy_swaps": 1})
    accepted = {"policy": "ema", "pool": "s", "bucket": "1", "gamma": "3"}
    assert registry.get_sample_value("nightjar:estimated_seconds_per_token", accepted) is None, "that is no time"
    charge = {name: registry.get_sample_value("nightjar:policy_in_charge", {"policy": name, "version": "1"})
              for name in ("static", "ema")}  # fmt: skip
    assert charge == {"static": 0, "ema": 1}
    assert registry.get_sample_value("nightjar:policy_swaps_total") == 1
    metrics.update(PolicySide("restarting"), counters)
    assert registry.get_sample_value("nightjar:policy_up") == 0
