"""The simulator against the real server: fitted on load A, compared on load B, which it has not seen (`record.py`)."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from sglang_nightjar.policy import loader
from sglang_nightjar.sim.fit import fit
from sglang_nightjar.sim.loads import Lengths, LoadSettings
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
    load = LoadSettings(
        clients=tuple((float(seconds), float(clients)) for seconds, clients in said["load_b"]),
        prompt=Lengths(found.prompt_tokens),
        output=Lengths(said["tokens_b"]),
    )
    lines = [
        f"Fitted on {found.iterations} iterations; error of its cells: median {found.error[0]:.1%}, 95% below "
        f"{found.error[1]:.1%}.",
        "",
        "| policy | tokens/s measured | simulated | error | mean latency measured | simulated | error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in measured["measured"]:
        policy = run["policy"]
        results = [
            simulate(found.setup, load, loader.make(policy["name"], None, policy.get("params", {}), seed), seed)
            for seed in range(args.seeds)
        ]
        rate = sum(result.rate for result in results) / len(results)
        latency = sum(result.latency_ms["mean"] for result in results) / len(results)
        took = 1e3 * run["latency_s"]
        lines.append(
            f"| {run['name']} | {run['rate']:.1f} | {rate:.1f} | {rate / run['rate'] - 1:+.1%} | {took:.0f} ms | "
            f"{latency:.0f} ms | {latency / took - 1:+.1%} |"
        )
    text = "\n".join(lines) + "\n"
    (args.results / "validation.md").write_text(text)
    setup = replace(found.setup, engine=replace(found.setup.engine, max_running=32))
    (args.results / "demo-cpu.yaml").write_text(setup.dump())
    print(text)


if __name__ == "__main__":
    main()
