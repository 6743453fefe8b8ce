"""Throughput and accepted length of the demo pair for every batch size and γ: where speculation pays, and where not.

Servers of all γ run side by side, idle but the one that is measured; each repetition visits them in another order, so
what the machine does meanwhile falls on all alike.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from helpers.serving import Server  # noqa: E402

from bench.crossover.report import write_report  # noqa: E402
from bench.provenance import provenance  # noqa: E402
from sglang_nightjar.demo.pair import ensure_pair  # noqa: E402
from sglang_nightjar.demo.prompts import PromptMaker  # noqa: E402
from sglang_nightjar.demo.recipe import HELD_OUT_SEED, read_prompts  # noqa: E402


def flags_of(gamma: int) -> list[str]:
    """The server with speculation of length `gamma`; 0 is a server without any."""
    pair = ensure_pair()
    # Idle servers must leave the cores to the one that is measured.
    common = ["--model-path", str(pair.target), "--sleep-on-idle", "--max-running-requests", "32"]
    common += ["--max-total-tokens", "16384", "--disable-radix-cache"]
    if gamma == 0:
        return common
    return [
        *common,
        *("--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(pair.draft)),
        *("--speculative-eagle-topk", "1", "--speculative-num-steps", str(gamma)),
        *("--speculative-num-draft-tokens", str(gamma + 1)),
    ]


def generate(url: str, texts: list[str], new_tokens: int, temperature: float) -> dict:
    """One batch of requests sent together; its duration in seconds, tokens, and verify steps."""
    sampling = {"max_new_tokens": new_tokens, "ignore_eos": True, "temperature": temperature}
    body = json.dumps({"text": texts, "sampling_params": sampling}).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=600) as response:
        answers = json.load(response)
    seconds = time.perf_counter() - began
    metas = [a["meta_info"] for a in answers]
    return {
        "seconds": seconds,
        "tokens": sum(m["completion_tokens"] for m in metas),
        "verify_steps": sum(m.get("spec_verify_ct", 0) for m in metas),
    }


def rendered_prompts(prompts_file: Path | None, count: int, seed: int) -> list[str]:
    """Chat-template texts: the held-out part of the project's own prompts, or the first turns of a JSONL file."""
    from sglang_nightjar.demo.corpus import render

    if prompts_file is None:
        conversations = PromptMaker(HELD_OUT_SEED).first_round(count)
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
    cells: dict[tuple[int, int], list[dict]] = {}
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {}
        for gamma in args.gammas:
            print(f"starting the server of gamma {gamma}", flush=True)
            servers[gamma] = stack.enter_context(Server(flags_of(gamma), logs / f"gamma{gamma}.log"))
            generate(servers[gamma].url, texts[:2], 16, args.temperature)
        for batch in args.batches:
            for repetition in range(args.repetitions):
                chosen = [texts[(repetition * batch + i) % len(texts)] for i in range(batch)]
                for gamma in draw.sample(args.gammas, len(args.gammas)):
                    cell = generate(servers[gamma].url, chosen, args.new_tokens, args.temperature)
                    cells.setdefault((batch, gamma), []).append(cell)
            rates = {g: statistics.median(c["tokens"] / c["seconds"] for c in cells[batch, g]) for g in args.gammas}
            print(f"batch {batch}: " + ", ".join(f"gamma {g} {r:.1f} tokens/s" for g, r in rates.items()), flush=True)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    result = {
        "provenance": provenance(settings=settings),
        "cells": [{"batch": b, "gamma": g, "runs": runs} for (b, g), runs in sorted(cells.items())],
    }
    (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    write_report(result, args.out)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
