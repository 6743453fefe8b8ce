"""The simulator against the real server: fitted on load A, compared on load B, which it has not seen (`record.py`)."""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np

from sglang_nightjar.core.messages import Telemetry
from sglang_nightjar.core.policy import Policy
from sglang_nightjar.policy import loader
from sglang_nightjar.sim.costs import Table
from sglang_nightjar.sim.fit import fit, read, stalls, steady
from sglang_nightjar.sim.loads import Lengths, LoadSettings
from sglang_nightjar.sim.setup import Setup
from sglang_nightjar.sim.world import simulate

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    measured = json.loads((args.results / "measured.json").read_text())
    found = fit(args.results / "cycle.jsonl.gz", "fitted")
    said = measured["provenance"]
    lines = [
        f"Fitted on {found.iterations} iterations; error of its cells: median {found.error[0]:.1%}, 95% below "
        f"{found.error[1]:.1%}. Stalled during load A: {_stalled(found.setup):.1%} of the time. Pace: how long load "
        "B's iterations took against the fit, median.",
        "",
        "| policy | measured | pace | stalled | simulated | error | with load B's machine | error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for index, run in enumerate(measured["measured"]):
        _, records = read(args.results / f"load-b-{index}.jsonl.gz")
        pace, machine = _machine(records, found.setup)
        measured_rate = _rate(records, said["load_b"])
        took = 1e3 * run["latency_s"]
        load = _load(said, records, run["requests"])
        cells = []
        for setup in (found.setup, machine):
            rate, latency = _simulated(run["policy"], setup, load, args.seeds)
            cells.append(
                f"{rate:.1f} tokens/s, {latency:.0f} ms | {rate / measured_rate - 1:+.1%}, {latency / took - 1:+.1%}"
            )
        shown = f"{measured_rate:.1f} tokens/s, {took:.0f} ms"
        lines.append(f"| {run['name']} | {shown} | {pace:.2f} | {_stalled(machine):.1%} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    (args.results / "validation.md").write_text(text)
    setup = replace(found.setup, engine=replace(found.setup.engine, max_running=32))
    (args.results / "fitted.yaml").write_text(setup.dump())
    print(text)


def _simulated(policy: dict, setup: Setup, load: LoadSettings, seeds: int) -> tuple[float, float]:
    """Tokens per second and mean latency in ms, means over seeds."""
    rates, latencies = [], []
    for seed in range(seeds):
        told = _Told(loader.make(policy["name"], None, policy.get("params", {}), seed))
        # Clients wait for their last answers, so these count, too.
        result = simulate(setup, load, told, seed, drain=True)
        rates.append(_rate(told.records, [list(phase) for phase in load.clients]))
        latencies.append(result.latency_ms["mean"])
    return statistics.mean(rates), statistics.mean(latencies)


class _Told(Policy):
    """Another policy, and the telemetry that it got: so both servers are measured in the same way."""

    name = "told"

    def __init__(self, inner: Policy) -> None:
        super().__init__()
        self.inner, self.records = inner, []
        self.hello, self.arrivals = inner.hello, inner.arrivals

    def telemetry(self, sender, record):
        self.records.append(record)
        return self.inner.telemetry(sender, record)


def _load(said: dict, records: list[Telemetry], requests: int) -> LoadSettings:
    """Load B. Only the mean length of its prompts is taken from its own log: it is the load's, not the server's."""
    return LoadSettings(
        clients=tuple((float(seconds), float(clients)) for seconds, clients in said["load_b"]),
        prompt=Lengths(max(1.0, sum(r.prefill_tokens for r in records) / requests)),
        output=Lengths(**said["output_b"]),
    )


def _rate(records: list[Telemetry], phases: list[list[float]]) -> float:
    """Tokens per second that decode iterations committed within the load's phases."""
    end = records[0].at_ns - records[0].iteration_ns + 1e9 * sum(seconds for seconds, _ in phases)
    return sum(r.committed for r in records if r.at_ns <= end) / sum(seconds for seconds, _ in phases)


def _machine(records: list[Telemetry], setup: Setup) -> tuple[float, Setup]:
    """The pace, and the fit with the pace and the stalls of this log: the machine's, which no simulator can know."""
    plain = steady(records)
    took = np.array([float(r.iteration_ns) for r in plain])
    expected = [setup.costs.decode_ns(r.batch_size, r.gamma, r.context_tokens) for r in plain]
    pace = float(np.median(took / expected))
    per_s, length_ns = stalls(took, took / expected / pace, setup.costs.noise)
    slower = _slower(setup, pace)
    return pace, replace(slower, costs=replace(slower.costs, stalls_per_s=per_s, stall_ns=length_ns))


def _stalled(setup: Setup) -> float:
    """Share of the time that stalls take."""
    lost = setup.costs.stalls_per_s * setup.costs.stall_ns / 1e9
    return lost / (1.0 + lost)


def _slower(setup: Setup, factor: float) -> Setup:
    """The same server on a machine that takes ``factor`` times as long for everything."""
    costs = setup.costs

    def scaled(table: Table) -> Table:
        return tuple((count, ns * factor) for count, ns in table)

    return replace(
        setup,
        costs=replace(
            costs,
            target=scaled(costs.target),
            draft=scaled(costs.draft),
            prefill=scaled(costs.prefill),
            speculative_ns=costs.speculative_ns * factor,
            request_ns=costs.request_ns * factor,
            context_ns=costs.context_ns * factor,
        ),
    )


if __name__ == "__main__":
    main()
