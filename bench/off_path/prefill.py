"""What a draft costs a prefill: servers without one, at γ=0 and at γ=1, one request of a token at a time, by turns."""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "test"))

from helpers.serving import Server

from bench.off_path.run import ARMS
from bench.off_path.served import flags, ratio
from sglang_nightjar.demo.corpus import held_out, render

_NONE = "no speculation"
#: Which of `ARMS`, and its γ.
_KINDS = {_NONE: (ARMS[0], 0), "γ=0": (ARMS[1], 0), "γ=1": (ARMS[1], 1)}
_WARM_UP = 3
#: Characters; longer ones would weigh more than the others together.
_LONGEST = 400


def ms(server: Server, text: str) -> float:
    """From a request to its only token."""
    before = time.perf_counter()
    server.post("/generate", {"text": text, "sampling_params": {"max_new_tokens": 1, "temperature": 0}})
    return 1e3 * (time.perf_counter() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--kv-tokens", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    prompts = [text for text in map(render, held_out(512)) if len(text) < _LONGEST][: args.prompts + _WARM_UP]
    times: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {
            kind: stack.enter_context(Server(flags(arm, folder, args.kv_tokens, gamma), folder / f"{kind}.log"))
            for kind, (arm, gamma) in _KINDS.items()
        }
        for number, text in enumerate(prompts):
            for kind in draw.sample(list(servers), len(servers)):
                taken = ms(servers[kind], text)
                if number >= _WARM_UP:
                    times[kind].append(taken)
    print("| | ms, median | ratio, median (quartiles) |\n| --- | --- | --- |")
    for kind, found in times.items():
        print(f"| {kind} | {statistics.median(found):.1f} | {ratio(times[_NONE], found)} |")


if __name__ == "__main__":
    main()
