"""How fast the simulator is, and how fast ``model`` decides.

``python -m bench.regret.speed`` prints seconds per million requests on one core for several policies, replicas and
batches, and the time that ``model`` takes for a record, with the size of its state. ``--requests 1000000`` runs a
whole million each (about two minutes each); the default extrapolates from fewer.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.provenance import provenance
from sglang_nightjar.core.policy import Decision, Policy
from sglang_nightjar.policies.model import Model
from sglang_nightjar.policy import loader
from sglang_nightjar.sim.builtin import builtin
from sglang_nightjar.sim.loads import Lengths, LoadSettings
from sglang_nightjar.sim.world import Result, simulate

SERVER = "h200-8b"
#: Policy, its parameters, replicas, requests per second and replica.
RUNS: tuple[tuple[str, dict[str, Any], int, float], ...] = (
    ("static", {"gamma": 2}, 1, 60.0),
    ("static", {"gamma": 2}, 200, 60.0),
    ("nightjar", {}, 200, 55.0),
    ("model", {}, 1, 50.0),
    ("model", {}, 200, 52.0),
)


def run(policy: Policy, replicas: int, rate: float, requests: int) -> tuple[float, Result]:
    """CPU seconds per million requests, and what the run gave."""
    load = LoadSettings(
        rates=((requests / (rate * replicas), rate * replicas),),
        prompt=Lengths(200, 0.8, 16, 2000),
        output=Lengths(100, 0.7, 8, 1500),
    )
    began = time.process_time()
    result = simulate(builtin(SERVER), load, policy, replicas=replicas, drain=True)
    return 1e6 * (time.process_time() - began) / result.requests, result


class Timed(Model):
    """``model``, and how long it took for each record, ns."""

    def __init__(self) -> None:
        super().__init__()
        self.took: list[int] = []

    def telemetry(self, sender: str, record: Any) -> Decision | None:
        """As `Model.telemetry`."""
        began = time.perf_counter_ns()
        decision = super().telemetry(sender, record)
        self.took.append(time.perf_counter_ns() - began)
        return decision


def decide(requests: int) -> dict[str, float]:
    """Time of ``model`` for a record, µs, and its state, KiB, after a load on one scheduler."""
    policy = Timed()
    run(policy, 1, 50.0, requests)
    percentiles = quantiles(policy.took, n=100)
    return {
        "records": len(policy.took),
        "median_us": round(median(policy.took) / 1e3, 2),
        "p99_us": round(percentiles[98] / 1e3, 1),
        "mean_us": round(sum(policy.took) / len(policy.took) / 1e3, 2),
        "state_kib": round(len(json.dumps(policy.save())) / 1024, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=30_000, help="of each run; default: 30,000, a look")
    parser.add_argument("--policies", nargs="+", help="only these")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for name, params, replicas, rate in RUNS:
        if args.policies and name not in args.policies:
            continue
        seconds, result = run(loader.make(name, None, params, 0), replicas, rate, args.requests)
        lines.append(
            {"policy": name, "replicas": replicas, "batch": round(result.batch_size, 1), "requests": result.requests,
             "iterations_per_request": round(result.iterations / result.requests, 2),
             "s_per_million": round(seconds, 1),
             "us_per_iteration": round(seconds * result.requests / result.iterations, 1)}
        )  # fmt: skip
        print(json.dumps(lines[-1]), flush=True)
    found = decide(args.requests)
    print(json.dumps({"model decides": found}))
    text = json.dumps({"provenance": provenance(server=SERVER), "runs": lines, "decides": found}, indent=1)
    (args.out / "speed.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
