"""What it is worth to verify only the drafts that pay: one server, fixed γ with and without, by turns.

Either a batch of answers that begin together, or with ``--come-and-go`` clients that ask one after another.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "test"))

from helpers.serving import Server

from bench.off_path.clients import turn
from bench.off_path.run import ARMS
from bench.off_path.served import flags, ratio
from bench.off_path.streams import pieces, short_prompts
from bench.provenance import provenance, settings_of
from sglang_nightjar.observe.client import Client

_NEW_TOKENS = 80
_KEY = "key"
#: Of a turn's pieces, the part that counts: all requests run then.
_FROM, _TO = 0.2, 0.7
#: Of clients that come and go: s of a turn, and how long their answers are.
_TURN_S, _SHORTEST, _LONGEST_ANSWER = 5.0, 32, 96
#: s. A plan is in force by then.
_SETTLES = 0.3


def tokens_per_s(url: str, texts: list[str]) -> float:
    """Of a batch of answers, while all of them run."""
    times, gained, so_far = [], [], dict.fromkeys(range(len(texts)), 0)
    for piece in pieces(url, texts, _NEW_TOKENS):
        answer = json.loads(piece)
        index, tokens = answer.get("index", 0), answer["meta_info"]["completion_tokens"]
        times.append(time.perf_counter())
        gained.append(tokens - so_far[index])
        so_far[index] = tokens
    first, last = int(_FROM * len(times)), int(_TO * len(times))
    return sum(gained[first + 1 : last + 1]) / (times[last] - times[first])


def come_and_go(url: str, texts: list[str], requests: int, seed: int) -> float:
    """Tokens per second of ``requests`` clients, none of whose prompts the radix cache has."""
    urllib.request.urlopen(
        urllib.request.Request(f"{url}/flush_cache", b"", {"Authorization": f"Bearer {_KEY}"})
    ).read()
    draw = random.Random(seed)
    asked = (
        (text, draw.randint(_SHORTEST, _LONGEST_ANSWER)) for text in itertools.cycle(draw.sample(texts, len(texts)))
    )
    return turn(url, asked, requests, _TURN_S).tokens / _TURN_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 8, 12])
    parser.add_argument("--gammas", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--come-and-go", action="store_true", help="clients with one request after another")
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    prompts = short_prompts(512)
    arms = [(gamma, trim) for gamma in args.gammas for trim in (False, True) if gamma or not trim]
    found: dict[int, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Server(
            [*flags(ARMS[1], folder, 8192), "--admin-api-key", _KEY], folder / "server.log", key=_KEY
        ) as server:
            client = Client(server.url, _KEY)
            for requests, repetition in itertools.product(args.requests, range(-1, args.repetitions)):
                texts = [prompts[(repetition * requests + i) % len(prompts)] for i in range(requests)]
                for gamma, trim in draw.sample(arms, len(arms)):
                    client.set_policy({"name": "static", "params": {"gamma": gamma, "trim": trim}})
                    time.sleep(_SETTLES)
                    if args.come_and_go:
                        rate = come_and_go(server.url, prompts, requests, args.seed + repetition)
                    else:
                        rate = tokens_per_s(server.url, texts)
                    if repetition >= 0:
                        label = f"γ={gamma}" + ", trimmed" * trim
                        found.setdefault(requests, {}).setdefault(label, []).append(rate)
                print(f"{requests} requests, repetition {repetition + 1} of {args.repetitions}", file=sys.stderr)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"provenance": provenance(settings=settings_of(args)), "tokens_per_s": found}
    (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    for requests, by_arm in found.items():
        first, *_ = labels = sorted(by_arm)
        print(
            f"\n| {requests} requests | tokens/s, median | ratio to {first}, median (quartiles) |\n| --- | --- | --- |"
        )
        for label in labels:
            print(f"| {label} | {statistics.median(by_arm[label]):.1f} | {ratio(by_arm[first], by_arm[label])} |")


if __name__ == "__main__":
    main()
