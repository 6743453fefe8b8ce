"""How ``nightjar``'s regret grows where nothing moves, against the paper's bound of Õ(√T): slopes in log-log.

A slope of 0.5 is the bound's, 1 is a loss that never gets less. Each of our departures from the paper is undone by
itself, and all together. ``python -m bench.regret.growth``; about three minutes of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np

from bench.regret.suite import stationary
from sglang_nightjar.core import bin_greedy
from sglang_nightjar.policies import nightjar
from sglang_nightjar.sim.world import simulate

LEVELS = (2, 8, 24)
ITERATIONS, MARK, FROM = 50_000, 500, 5_000
FOREVER = 10**9


@contextmanager
def changed(arms: bool = False, bins: bool = False, blocks: bool = False) -> Iterator[None]:
    """Undo departures: every arm has its turn (``likely``); bins are as long at every size (``bin_length``).

    ``blocks``: the other reading of the paper, in which every bin of block b explores with probability 1/b.
    """
    with ExitStack() as stack:
        if arms:
            stack.enter_context(patch.object(nightjar, "likely", lambda pool, index, arms: arms))
        if bins:
            stack.enter_context(patch.object(nightjar, "bin_length", lambda iterations, batch_size: iterations))
        if blocks:
            number = property(lambda bucket: (bucket.bins + 1).bit_length())
            stack.enter_context(patch.object(bin_greedy.Bucket, "turn", number))
        yield


VARIANTS = {
    "nightjar": ({}, {}),
    "every arm in turn, not only likely ones": ({"arms": True}, {}),
    "bins of 8 at every size": ({"bins": True}, {}),
    "nothing fades": ({}, {"memory": FOREVER}),
    "all three: the paper": ({"arms": True, "bins": True}, {"memory": FOREVER}),
    "the paper, if every bin of block b explores with 1/b": (
        {"arms": True, "bins": True, "blocks": True},
        {"memory": FOREVER},
    ),
    "nightjar, if every bin of block b explores with 1/b": ({"blocks": True}, {}),
}


def curve(name: str, clients: int, seed: int, iterations: int = ITERATIONS) -> list[tuple[int, float, float]]:
    """(iterations, tokens lost against the oracle so far, tokens of the oracle so far)."""
    undone, params = VARIANTS[name]
    scenario = stationary("demo-cpu", clients)
    with changed(**undone):
        policy = nightjar.Nightjar(nightjar.NightjarParams(**params), seed)
        result = simulate(scenario.setup, scenario.load, policy, seed, iterations=iterations, mark=MARK)
    return [(at, could - got, could) for at, got, could in result.history]


def slope(points: list[tuple[int, float, float]], first: int = FROM) -> float:
    """Of log(lost) over log(iterations), from ``first`` on."""
    x, y = zip(*((at, lost) for at, lost, _ in points if at >= first), strict=True)
    return float(np.polyfit(np.log(x), np.log(np.maximum(y, 1e-9)), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    lines = [
        "| planner | " + " | ".join(f"{clients} clients: slope | lost" for clients in LEVELS) + " |",
        "| --- |" + " --- | --- |" * len(LEVELS),
    ]
    for name in VARIANTS:
        cells = []
        for clients in LEVELS:
            curves = [curve(name, clients, seed, args.iterations) for seed in range(args.seeds)]
            lost = median(points[-1][1] / points[-1][2] for points in curves)
            cells.append(f"{median(slope(points, args.iterations // 10) for points in curves):.2f} | {lost:.2%}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    (args.out / "growth.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
