"""What the control loop costs: a static γ through the whole loop against the same γ in plain SGLang.

Both servers run side by side, idle but the one that is measured; each repetition gives both the same prompts, in random
order. The loop is the real one: telemetry of every iteration to the policy process, and its plan back.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import urllib.request
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from bench import demo_server
from bench.crossover.run import FLAGS, rendered_prompts
from bench.provenance import provenance

ARMS = {"plain": "off", "loop": "static"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gamma", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start-only", action="store_true", help="start both servers, print their URLs, and wait")
    parser.add_argument("--urls", nargs=2, metavar=("PLAIN", "LOOP"), help="measure servers that already run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()

    with ExitStack() as stack:
        if args.urls:
            urls = dict(zip(ARMS, args.urls, strict=True))
        else:
            logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            urls = {}
            for arm, policy in ARMS.items():
                server = demo_server.start(args.gamma, logs / f"{arm}.log", *FLAGS, "--nightjar-policy", policy)
                urls[arm] = stack.enter_context(server).url
        if args.start_only:
            input(f"measure with --urls {' '.join(urls.values())}; Enter ends the servers\n")
            return
        cells = measure(urls, args)
        status = rank_status(urls["loop"])
    result = {
        "provenance": provenance(settings={name: str(value) for name, value in vars(args).items()}),
        "cells": cells,
        "status": status,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def measure(urls: dict[str, str], args: argparse.Namespace) -> list[dict]:
    """One cell per batch size: each arm's outcomes, repetition by repetition."""
    draw = random.Random(args.seed)
    texts = rendered_prompts(None, max(args.batches) * args.repetitions, args.seed)
    for url in urls.values():
        demo_server.timed(url, texts[:2], 16)
    cells = []
    for batch in args.batches:
        runs: dict[str, list[dict]] = {arm: [] for arm in ARMS}
        for repetition in range(args.repetitions):
            chosen = [texts[(repetition * batch + i) % len(texts)] for i in range(batch)]
            for arm in draw.sample(list(ARMS), len(ARMS)):
                runs[arm].append(asdict(demo_server.timed(urls[arm], chosen, args.new_tokens)))
        cells.append({"batch": batch, "runs": runs})
    return cells


def rank_status(url: str) -> dict:
    with urllib.request.urlopen(f"{url}/server_info", timeout=60) as response:
        return json.load(response)["internal_states"][0]["nightjar"]


def table(result: dict) -> str:
    """The result as Markdown. A ratio compares the two arms within one repetition."""
    lines = ["| batch | plain SGLang | through the loop | ratio (smallest to largest) |", "| --- | --- | --- | --- |"]
    for cell in result["cells"]:
        rates = {arm: [run["tokens"] / run["seconds"] for run in runs] for arm, runs in cell["runs"].items()}
        ratios = [loop / plain for plain, loop in zip(rates["plain"], rates["loop"], strict=True)]
        plain, loop = (statistics.median(rates[arm]) for arm in ARMS)
        lines.append(
            f"| {cell['batch']} | {plain:.1f} tok/s | {loop:.1f} tok/s | "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
        )
    status, overhead = result["status"], result["status"]["overhead_us"]
    lines.append("")
    lines.append(
        f"Agent on the scheduler's thread: p50 {overhead['p50']} µs, p99 {overhead['p99']} µs per iteration over "
        f"the last {min(status['iterations'], 1024)}; plans from {status['source']}, "
        f"{status['link']['dropped']} records dropped."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
