"""Regret of every policy against an oracle, in the simulator: loads that stand still, and loads that move.

Each line of ``results/runs.jsonl`` is one run, and a run that is there is not made again, as long as policies, core and
simulator are what they were: stop and start as you like. ``--report`` only writes the tables.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.provenance import provenance
from bench.regret.code import fingerprint
from bench.regret.report import PARTS, write_report
from bench.regret.suite import ADAPTIVE, LEVELS, STATICS, Scenario, moving, policy, stationary
from sglang_nightjar.sim.world import simulate

STATIONARY_ITERATIONS = 4000
#: Every so many iterations the meter notes where it stands; what the report looks at is kept.
MARK = 100
KEPT = {STATIONARY_ITERATIONS, *(end for part in PARTS for end in part if end)}


def one(scenario: Scenario, name: str, seed: int, iterations: int | None) -> dict[str, object]:
    """One run, as a line of the results."""
    began = time.process_time()
    result = simulate(
        scenario.setup,
        scenario.load,
        policy("off" if name == "oracle" else name, scenario.setup, seed),
        seed=seed,
        iterations=iterations,
        mark=MARK if iterations else 0,
        oracle=name == "oracle",
    )
    line = asdict(result) | {"scenario": scenario.name, "policy": name, "seed": seed}
    line["history"] = [row for row in result.history if row[0] in KEPT]
    return line | {"cpu_s": round(time.process_time() - began, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--parts", nargs="+", default=["stationary", "moving"], choices=("stationary", "moving"))
    parser.add_argument("--policies", nargs="+", help="only these")
    parser.add_argument("--scenarios", nargs="+", help="only those whose name begins so")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; run again to go on")
    parser.add_argument("--report", action="store_true", help="no runs, only the tables")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file, until = args.out / "runs.jsonl", time.monotonic() + 60 * args.minutes
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    code = fingerprint()
    done = keys(lines, code)
    if not args.report:
        with file.open("a") as out:
            for scenario, name, seed, iterations in jobs(args):
                if (scenario.name, name, seed) in done:
                    continue
                if time.monotonic() > until:
                    print("time is up; run again to go on")
                    break
                line = one(scenario, name, seed, iterations) | {"code": code}
                lines.append(line)
                out.write(json.dumps(line) + "\n")
                out.flush()
        (args.out / "provenance.json").write_text(json.dumps(provenance(seeds=args.seeds), indent=1) + "\n")
    print(write_report(lines, args.out))
    if stale := [line for line in lines if line.get("code") != code]:
        print(f"{len(stale)} of {len(lines)} runs are of other policies, core or simulator than these, {code}")


def keys(lines: list[dict[str, Any]], code: str) -> set[tuple[str, str, int]]:
    """Scenario, policy and seed of the runs that ``code`` made."""
    return {(line["scenario"], line["policy"], line["seed"]) for line in lines if line.get("code") == code}


def jobs(args: argparse.Namespace) -> list[tuple[Scenario, str, int, int | None]]:
    """All runs, seed by seed, so that a part of them is a smaller sample of the whole."""
    wanted = []
    for seed in range(args.seeds):
        if "stationary" in args.parts:
            for server, levels in LEVELS.items():
                for clients in levels:
                    wanted += [(stationary(server, clients), name, seed, STATIONARY_ITERATIONS) for name in ADAPTIVE]
        if "moving" in args.parts:
            names = ("oracle", "off", *(f"static {gamma}" for gamma in STATICS), *ADAPTIVE)
            wanted += [(scenario, name, seed, None) for scenario in moving() for name in names]
    return [
        job
        for job in wanted
        if (not args.policies or job[1] in args.policies)
        and (not args.scenarios or any(job[0].name.startswith(start) for start in args.scenarios))
    ]


if __name__ == "__main__":
    main()
