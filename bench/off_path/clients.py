"""What a draft at γ=0 costs clients that come and go: a closed loop on a server without a draft and on one that stays
at γ=0, by turns, the same requests for both.

Beside decoding, which `bench.off_path.served` has alone, there are prefills, arrivals and ends of answers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "test"))

from helpers.serving import Server

from bench.off_path import thread_cpu
from bench.off_path.run import ARMS
from bench.off_path.served import flags, ratio
from bench.off_path.streams import pieces, short_prompts

_WARM_UP_S = 3.0
#: Tokens of an answer, as in nightjar bench.
_SHORTEST, _LONGEST = 32, 96


@dataclass
class Turn:
    """What the clients of one turn saw until its end.

    Attributes:
        tokens: that came.
        gaps: s between two pieces of an answer.
    """

    tokens: int = 0
    gaps: list[float] = field(default_factory=list)


def turn(url: str, requests: Iterator[tuple[str, int]], clients: int, seconds: float) -> Turn:
    """``clients`` send (text, tokens wanted) one after another; what comes later is waited for, and not counted."""
    seen, lock, end = Turn(), threading.Lock(), time.perf_counter() + seconds

    def client() -> None:
        while time.perf_counter() < end:
            with lock:
                text, new_tokens = next(requests)
            before, came = 0, None
            for piece in pieces(url, text, new_tokens):
                now = time.perf_counter()
                if now >= end:
                    continue
                tokens = json.loads(piece)["meta_info"]["completion_tokens"]
                with lock:
                    seen.tokens += tokens - before
                    if came is not None:
                        seen.gaps.append(now - came)
                before, came = tokens, now

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=7.0, help="of a turn (7)")
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--kv-tokens", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    texts = short_prompts(512)
    rates: dict[str, list[float]] = {kind: [] for kind in ARMS}
    gaps: dict[str, list[float]] = {kind: [] for kind in ARMS}
    cpu: dict[str, list[Counter[str]]] = {kind: [] for kind in ARMS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {
            kind: stack.enter_context(Server(flags(kind, folder, args.kv_tokens), folder / f"{kind}.log"))
            for kind in ARMS
        }
        for server in servers.values():
            turn(server.url, itertools.cycle([(texts[0], _SHORTEST)]), args.clients, _WARM_UP_S)
        for repetition in range(args.repetitions):
            requests = [(draw.choice(texts), draw.randint(_SHORTEST, _LONGEST)) for _ in range(1000)]
            for kind in draw.sample(ARMS, len(ARMS)):
                before = thread_cpu.cpu_ms(servers[kind])
                seen = turn(servers[kind].url, itertools.cycle(requests), args.clients, args.seconds)
                taken = thread_cpu.cpu_ms(servers[kind]) - before
                rates[kind].append(seen.tokens / args.seconds)
                gaps[kind].append(1e3 * statistics.median(seen.gaps))
                steps = seen.tokens / args.clients
                cpu[kind].append(Counter({thread: ms / steps for thread, ms in taken.items()}))
            print(f"repetition {repetition + 1} of {args.repetitions}", file=sys.stderr)
    print("| | tokens/s, median | ratio, median (quartiles) | between two pieces, ms |\n| --- | --- | --- | --- |")
    for kind in ARMS:
        shown = ratio(rates[ARMS[0]], rates[kind])
        print(f"| {kind} | {statistics.median(rates[kind]):.1f} | {shown} | {statistics.median(gaps[kind]):.2f} |")
    print("\n" + thread_cpu.table(cpu))


if __name__ == "__main__":
    main()
