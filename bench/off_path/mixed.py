"""Decode steps and prefills of requests that come and go, at γ=0 and on a scheduler without a draft.

`bench.off_path.run` looks at decode steps of one batch that stays together. Here as many requests as asked for run all
the time: one that ends is followed by another, whose prefill comes between the others' steps.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import time
from contextlib import ExitStack
from typing import Any

from bench.off_path.run import ARMS, quartiles, watch_forward
from bench.one_scheduler import Arm, prompt_ids

#: Of an answer, fewest and most, as `nightjar bench` has them.
_NEW_TOKENS = (32, 96)

#: Is it a prefill; ms in all; ms of them in the target's forward pass.
Step = tuple[bool, float, float]


def mixed(one: Any, prompts: list[list[int]], running: int, iterations: int, seed: int) -> list[Step]:
    """``iterations`` of SGLang's loop with ``running`` requests. Of prefills only those of one request count, and of
    decode steps those of all.
    """
    one.forget()
    forwards, draw, numbers = watch_forward(one), random.Random(seed), itertools.count()
    found: list[Step] = []

    def fill_up() -> None:
        unfinished = sum(not req.finished() for req in one.reqs.values())
        for number in itertools.islice(numbers, running - unfinished):
            ids = prompts[(seed * running + number) % len(prompts)]
            one.add(f"{seed}.{number}", ids, draw.randint(*_NEW_TOKENS))

    one.reqs.clear()
    for _ in range(iterations):
        fill_up()
        forwards.clear()
        began = time.perf_counter()
        one.step(0)
        took = 1e3 * (time.perf_counter() - began)
        batch = one.scheduler.last_batch
        is_prefill = batch.forward_mode.is_extend()
        if len(batch.reqs) == (1 if is_prefill else running):
            found.append((is_prefill, took, 1e3 * sum(forwards)))
    for req in one.reqs.values():
        req.sampling_params.max_new_tokens = 1
    one.run(itertools.repeat(0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=24, help="that run all the time (24)")
    parser.add_argument("--iterations", type=int, default=60, help="of each scheduler in a repetition (60)")
    parser.add_argument("--repetitions", type=int, default=14, help="(14)")
    args = parser.parse_args()
    prompts = [ids[:256] for ids in prompt_ids(256)]
    flags = {"max_total_tokens": 8192, "max_running_requests": max(32, args.requests)}
    steps: dict[str, list[list[Step]]] = {name: [] for name in ARMS}
    with ExitStack() as stack:
        arms = {name: stack.enter_context(Arm(name != "none", **flags)) for name in ARMS}
        for arm in arms.values():
            arm.ask(mixed, prompts, 4, 40, args.repetitions)
        for repetition in range(args.repetitions):
            for name in ARMS if repetition % 2 else reversed(ARMS):
                steps[name].append(arms[name].ask(mixed, prompts, args.requests, args.iterations, repetition))
            print(f"repetition {repetition + 1} of {args.repetitions}", file=sys.stderr)
    print(table(steps))


def table(steps: dict[str, list[list[Step]]]) -> str:
    """Medians over all repetitions, and quartiles of the differences between the two medians of a repetition."""
    lines = ["| | no speculation, ms | γ=0, ms | longer by, ms: median (quartiles) |", "| --- | --- | --- | --- |"]
    kinds = ((False, "a decode step"), (True, "a prefill"))
    parts = (("", lambda step: step[1]), (", outside the forward pass", lambda step: step[1] - step[2]))
    for (is_prefill, kind), (part, value) in itertools.product(kinds, parts):
        medians = {
            name: [
                statistics.median(times) if (times := [value(s) for s in repetition if s[0] is is_prefill]) else None
                for repetition in steps[name]
            ]
            for name in ARMS
        }
        pairs = [(a, b) for a, b in zip(*(medians[name] for name in ARMS), strict=True) if a and b]
        if pairs:
            low, middle, high = quartiles([b - a for a, b in pairs])
            none, ours = (statistics.median(values) for values in zip(*pairs, strict=True))
            lines.append(f"| {kind}{part} | {none:.2f} | {ours:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
