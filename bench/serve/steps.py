"""How long decode steps and prefills took, from the answers alone: ``python -m bench.serve.steps DIR --scenario NAME``.

The same measure for a server that keeps no decision log, such as one without a draft.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.serve.store import Store

#: s. Pieces that the server sends after one step reach the client closer together than this.
_TOGETHER = 0.010


@dataclass(frozen=True)
class Steps:
    """Seconds from one step's pieces to the next one's.

    Attributes:
        decodes: of steps that brought none of the answers' first pieces.
        prefills: of those that brought first pieces only.
    """

    decodes: list[float]
    prefills: list[float]


def steps(answers: Sequence[Sequence[float]], start: float, end: float, requests: int) -> Steps:
    """``answers`` are the times of each one's pieces, in s. Only what lies between ``start`` and ``end`` counts, and
    only decode steps that brought a piece to at least ``requests`` answers.
    """
    pieces = sorted((at, place == 0) for times in answers for place, at in enumerate(times) if start < at < end)
    groups: list[list[tuple[float, bool]]] = []
    for piece in pieces:
        if groups and piece[0] - groups[-1][-1][0] <= _TOGETHER:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    found = Steps([], [])
    for before, group in zip(groups, groups[1:], strict=False):
        firsts = sum(first for _, first in group)
        if firsts == len(group):
            found.prefills.append(group[0][0] - before[0][0])
        elif not firsts and len(group) >= requests:
            found.decodes.append(group[0][0] - before[0][0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the --out of nightjar bench, with its runs/")
    parser.add_argument("--scenario", required=True)
    parser.add_argument("--between", type=float, nargs=2, required=True, metavar=("START", "END"), help="s of the load")
    parser.add_argument("--requests", type=int, default=1, help="in a decode step, at least (1)")
    args = parser.parse_args()
    start, end = args.between
    print("| repetition | arm | decode step, ms (number) | prefill, ms (number) |\n| --- | --- | --- | --- |")
    runs = [run for run in Store(args.folder).all() if run["scenario"] == args.scenario]
    for run in sorted(runs, key=lambda run: (run["repetition"], run["arm"])):
        answers = [[at for at, _ in answer["pieces"]] for answer in run["answers"]]
        found = steps(answers, start, end, args.requests)
        print(f"| {run['repetition'] + 1} | {run['arm']} | {_cell(found.decodes)} | {_cell(found.prefills)} |")


def _cell(seconds: list[float]) -> str:
    return f"{1e3 * median(seconds):.1f} ({len(seconds)})" if seconds else "–"


if __name__ == "__main__":
    main()
