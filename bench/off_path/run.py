"""What γ=0 costs: a scheduler with a draft that it does not use, against one that has none."""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.one_scheduler import Arm, prompt_ids
from bench.provenance import provenance, settings_of

ARMS = ("none", "gamma 0")
#: Of each repetition, in ms: the median, and what a tenth of the iterations is not above. Other work on the machine
#: only ever adds to an iteration, so the low figures are the quieter ones.
FIGURES = ("whole", "outside", "whole_low", "outside_low")


def decode(one: Any, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
    """Decode ``prompts`` at γ=0; of each decode iteration its seconds, those in the target's forward pass, its size."""
    one.forget()
    forwards = watch_forward(one)
    names = [f"d{i}" for i in range(len(prompts))]
    for name, ids in zip(names, prompts, strict=True):
        one.add(name, ids, new_tokens)
    sizes: list[int] = []
    inside: list[float] = []
    while True:
        count = len(one.seconds)
        forwards.clear()
        busy = one.step(0) is not None or one.scheduler.waiting_queue
        if len(one.seconds) > count:
            sizes.append(len(one.scheduler.running_batch.reqs))
            inside.append(sum(forwards))
        if not busy:
            return {"seconds": list(one.seconds), "inside": inside, "sizes": sizes}


def watch_forward(one: Any) -> list[float]:
    """A list to which every forward pass of the target adds its seconds."""
    runner = one.scheduler.tp_worker.model_runner
    if not hasattr(runner, "bench_seconds"):
        seconds: list[float] = []
        forward = runner.forward

        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            output = forward(*arguments, **named)
            seconds.append(time.perf_counter() - began)
            return output

        runner.forward, runner.bench_seconds = timed, seconds
    return runner.bench_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--kv-tokens", type=int, default=6144)
    parser.add_argument("--crowd", type=int, default=96, help="requests sent at once to see how many run; 0: skip")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()

    draw = random.Random(args.seed)
    prompts = prompt_ids(max(*args.batches, args.crowd, 1))
    flags = {"max_total_tokens": args.kv_tokens, "max_running_requests": 64, "disable_radix_cache": True}
    cells: dict[str, dict[str, dict[str, list[float]]]] = {}
    crowd: dict[str, float] = {}
    with ExitStack() as stack:
        arms = {name: stack.enter_context(Arm(name != "none", **flags)) for name in ARMS}
        for arm in arms.values():
            arm.ask(decode, prompts[:2], 8)
        for batch, repetition in itertools.product(args.batches, range(args.repetitions)):
            chosen = [prompts[(repetition * batch + i) % len(prompts)] for i in range(batch)]
            for name in draw.sample(ARMS, len(ARMS)):
                found = arms[name].ask(decode, chosen, args.new_tokens)
                full = [i for i, size in enumerate(found["sizes"]) if size == batch]
                cell = cells.setdefault(str(batch), {}).setdefault(name, {key: [] for key in FIGURES})
                whole = [1e3 * found["seconds"][i] for i in full]
                outside = [1e3 * (found["seconds"][i] - found["inside"][i]) for i in full]
                for key, times in (("whole", whole), ("outside", outside)):
                    cell[key].append(statistics.median(times))
                    cell[f"{key}_low"].append(lowest_tenth(times))
        for name in ARMS if args.crowd else ():
            found = arms[name].ask(decode, prompts[: args.crowd], 2 * args.new_tokens)
            # While there is a queue: the last requests to finish run alone in any case.
            crowd[name] = statistics.mean(found["sizes"][: len(found["sizes"]) // 2])
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"provenance": provenance(settings=settings_of(args)), "ms_per_iteration": cells, "mean_running": crowd}
    (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    text = table(cells, crowd)
    (args.out / "table.md").write_text(text)
    print(text)


def table(cells: dict[str, dict[str, dict[str, list[float]]]], crowd: dict[str, float]) -> str:
    """Medians over the repetitions, and the median of the ratios of neighbours."""
    lines = [
        "| requests | no speculation, ms | γ=0, ms | ratio, median (quartiles) | ratio of the lowest tenths | "
        "outside the forward pass, lowest tenth, ms | γ=0, ms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for batch, by_arm in cells.items():
        ratios = [b / a for a, b in zip(by_arm["none"]["whole"], by_arm["gamma 0"]["whole"], strict=True)]
        low, middle, high = quartiles(ratios)
        medians = {key: [statistics.median(by_arm[name][key]) for name in ARMS] for key in FIGURES}
        lines.append(
            f"| {batch} | {medians['whole'][0]:.2f} | {medians['whole'][1]:.2f} | "
            f"{middle:.3f} ({low:.3f} to {high:.3f}) | {medians['whole_low'][1] / medians['whole_low'][0]:.3f} | "
            f"{medians['outside_low'][0]:.2f} | {medians['outside_low'][1]:.2f} |"
        )
    if crowd:
        lines += ["", "| | no speculation | γ=0 |", "| --- | --- | --- |"]
        lines.append(f"| mean number of running requests | {crowd['none']:.1f} | {crowd['gamma 0']:.1f} |")
    return "\n".join(lines) + "\n"


def lowest_tenth(times: list[float]) -> float:
    """What a tenth of ``times`` is not above."""
    return sorted(times)[len(times) // 10]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


if __name__ == "__main__":
    main()
