"""The simulator against the real server: fitted on load A, compared on load B, which it has not seen (`record.py`)."""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

from sglang_nightjar.policy import loader
from sglang_nightjar.sim.costs import Table
from sglang_nightjar.sim.fit import fit, read, steady
from sglang_nightjar.sim.loads import Lengths, LoadSettings
from sglang_nightjar.sim.setup import Setup
from sglang_nightjar.sim.world import simulate

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    measured = json.loads((args.results / "measured.json").read_text())
    found = fit(args.results / "cycle.jsonl.gz", "demo-cpu")
    said = measured["provenance"]
    lines = [
        f"Fitted on {found.iterations} iterations; error of its cells: median {found.error[0]:.1%}, 95% below "
        f"{found.error[1]:.1%}. Pace: how long load B's iterations took against the fit, median.",
        "",
        "| policy | measured | pace | simulated | error | at that pace | error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for index, run in enumerate(measured["measured"]):
        pace = _pace(args.results / f"load-b-{index}.jsonl.gz", found.setup)
        measured_rate = _rate(args.results / f"load-b-{index}.jsonl.gz", said["load_b"])
        took = 1e3 * run["latency_s"]
        load = _load(said, args.results / f"load-b-{index}.jsonl.gz", run["requests"])
        cells = []
        for factor in (1.0, pace):
            rate, latency = _simulated(run["policy"], _slower(found.setup, factor), load, args.seeds)
            cells.append(
                f"{rate:.1f} tokens/s, {latency:.0f} ms | {rate / measured_rate - 1:+.1%}, {latency / took - 1:+.1%}"
            )
        shown = f"{measured_rate:.1f} tokens/s, {took:.0f} ms"
        lines.append(f"| {run['name']} | {shown} | {pace:.2f} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    (args.results / "validation.md").write_text(text)
    setup = replace(found.setup, engine=replace(found.setup.engine, max_running=32))
    (args.results / "demo-cpu.yaml").write_text(setup.dump())
    print(text)


def _simulated(policy: dict, setup: Setup, load: LoadSettings, seeds: int) -> tuple[float, float]:
    """Tokens per second and mean latency in ms, means over seeds."""
    results = [
        simulate(setup, load, loader.make(policy["name"], None, policy.get("params", {}), seed), seed)
        for seed in range(seeds)
    ]
    return (
        sum(result.rate for result in results) / seeds,
        sum(result.latency_ms["mean"] for result in results) / seeds,
    )


def _load(said: dict, log: Path, requests: int) -> LoadSettings:
    """Load B. Only the mean length of its prompts is taken from its own log: it is the load's, not the server's."""
    _, records = read(log)
    return LoadSettings(
        clients=tuple((float(seconds), float(clients)) for seconds, clients in said["load_b"]),
        prompt=Lengths(max(1.0, sum(r.prefill_tokens for r in records) / requests)),
        output=Lengths(said["tokens_b"]),
    )


def _rate(log: Path, phases: list[list[float]]) -> float:
    """Tokens per second that decode iterations committed within the load's phases, as the simulator counts them."""
    _, records = read(log)
    end = records[0].at_ns - records[0].iteration_ns + 1e9 * sum(seconds for seconds, _ in phases)
    return sum(r.committed for r in records if r.at_ns <= end) / sum(seconds for seconds, _ in phases)


def _pace(log: Path, setup: Setup) -> float:
    """Median of the iterations' times over what the fit says: the machine's pace, which no simulator can know."""
    _, records = read(log)
    return statistics.median(
        r.iteration_ns / setup.costs.decode_ns(r.batch_size, r.gamma, r.context_tokens) for r in steady(records)
    )


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
