"""Throughput and accepted length of the demo pair for every batch size and γ: where speculation pays, and where not.

Servers of all γ run side by side, idle but the one that is measured; each repetition visits them in another order, so
what the machine does meanwhile falls on all alike.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from bench import demo_server
from bench.crossover.report import write_report
from bench.provenance import provenance, settings_of
from sglang_nightjar.demo.corpus import held_out, render
from sglang_nightjar.demo.recipe import read_prompts

# The same in every arm: speculation would otherwise lower the limit on running requests by itself.
FLAGS = ("--max-running-requests", "32", "--max-total-tokens", "8192", "--disable-radix-cache")


def rendered_prompts(prompts_file: Path | None, count: int, seed: int) -> list[str]:
    """Chat-template texts: the held-out part of the project's own prompts, or the first turns of a JSONL file."""
    if prompts_file is None:
        conversations = held_out(count)
    else:
        conversations = [c for _, c in read_prompts(prompts_file) if len(c[0]["content"]) < 1200]
        random.Random(seed).shuffle(conversations)
    return [render(c) for c in conversations[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gammas", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--prompts", type=Path, help="JSONL of turns; default: our own held-out prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    draw = random.Random(args.seed)
    texts = rendered_prompts(args.prompts, max(args.batches) * args.repetitions, args.seed)
    cells: dict[tuple[int, int], list[demo_server.Outcome]] = {}
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {}
        for gamma in args.gammas:
            print(f"starting the server of gamma {gamma}", flush=True)
            servers[gamma] = stack.enter_context(demo_server.start(gamma, logs / f"gamma{gamma}.log", *FLAGS))
            demo_server.timed(servers[gamma].url, texts[:2], 16)
        for batch in args.batches:
            for repetition in range(args.repetitions):
                chosen = [texts[(repetition * batch + i) % len(texts)] for i in range(batch)]
                for gamma in draw.sample(args.gammas, len(args.gammas)):
                    outcome = demo_server.timed(servers[gamma].url, chosen, args.new_tokens, args.temperature)
                    cells.setdefault((batch, gamma), []).append(outcome)
            rates = {g: statistics.median(o.rate for o in cells[batch, g]) for g in args.gammas}
            print(f"batch {batch}: " + ", ".join(f"gamma {g} {r:.1f} tokens/s" for g, r in rates.items()), flush=True)
    result = {
        "provenance": provenance(settings=settings_of(args)),
        "cells": [
            {"batch": b, "gamma": g, "runs": [asdict(r) for r in runs]} for (b, g), runs in sorted(cells.items())
        ],
    }
    (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    write_report(result, args.out)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
