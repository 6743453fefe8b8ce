"""The benchmark's loads on a simulated server: nothing is started."""

from typing import Any

import pytest

from bench.serve import simulated
from bench.serve.scenarios import warm_up
from bench.serve.settings import Settings, make_job
from sglang_nightjar.sim.builtin import builtin


class _Words:
    """Prompts of three tokens, without a tokenizer."""

    def draw(self, count: int, _seed: str, _lengths: Any = ()) -> list[list[int]]:
        return [[index, 1, 2] for index in range(count)]


def play(name: str, arm: str, time_scale: float = 0.5) -> dict[str, Any]:
    machine, settings = next(machine for machine in simulated.MACHINES if machine.name == "demo-avx2"), Settings()
    scenario, words = machine.scenarios(time_scale)[name], _Words()
    warm = make_job(warm_up(settings.warm_up_s, settings.max_running_requests), 0, settings, words, "")  # type: ignore[arg-type]
    jobs = (warm, make_job(scenario, 0, settings, words, ""))  # type: ignore[arg-type]
    made = simulated.run(machine, builtin(machine.name), scenario, arm, 0, jobs)
    return made | {"sent": len(jobs[1].requests), "seconds": scenario.seconds}


def test_an_open_loop_is_the_benchmarks_own() -> None:
    plain, fast = play("surge", "none"), play("surge", "static-1")
    # Every request of the load is there once, the warm-up's are not.
    assert plain["whole"]["requests"] == fast["whole"]["requests"] == plain["sent"]
    assert plain["shares"][0] == pytest.approx(1.0) and fast["shares"][1] == pytest.approx(1.0)
    phases = plain["by_phase"]
    # Low load, surge, and back to low load, even at half the time.
    for calm in ("before", "recovery"):
        assert 0.5 < phases[calm]["latency_s"]["p50"] < 0.8 * phases["surge"]["latency_s"]["p50"]
    assert fast["by_phase"]["before"]["latency_s"]["mean"] < phases["before"]["latency_s"]["mean"]


def test_a_closed_loop_has_its_clients() -> None:
    found = play("clients", "none")
    calm, full = (found["by_phase"][f"{name}"] for name in ("1 client", "24 clients"))
    assert 40 < calm["tokens_per_s"] < 90 < 250 < full["tokens_per_s"]
    # Little's law: latency × rate is the number of clients.
    assert full["requests_per_s"] * full["latency_s"]["mean"] == pytest.approx(24, rel=0.25)


def test_a_server_without_a_draft_is_spared_what_an_idle_one_costs() -> None:
    machine = next(machine for machine in simulated.MACHINES if machine.name == "demo-avx2")
    costs = builtin(machine.name).costs
    spared = simulated.without_draft(builtin(machine.name), machine.idle_draft_ns).costs
    assert costs.decode_ns(24, 0, 1000.0) - spared.decode_ns(24, 0, 1000.0) == pytest.approx(1e6)
    none, off = (play("clients", arm)["whole"]["tokens_per_s"] for arm in ("none", "off"))
    assert 1.01 < none / off < 1.04


@pytest.mark.parametrize("name", simulated.SCENARIOS)
def test_same_load_for_every_arm(name: str) -> None:
    arms = [play(name, arm) for arm in ("none", "nightjar")]
    assert all(arm["faults"] == [] for arm in arms)
    if arms[0]["open_loop"]:
        assert len({arm["whole"]["requests"] for arm in arms}) == 1


def test_nobody_makes_more_than_the_oracle() -> None:
    """It knows which γ is the best at each size."""
    arms = ("none", "static-1", "static-2", "static-3", "static-5", simulated.ORACLE)
    rates = {arm: play("clients", arm)["whole"]["tokens_per_s"] for arm in arms}
    assert rates.pop(simulated.ORACLE) > 1.01 * max(rates.values())
