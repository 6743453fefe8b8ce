"""Bin-wise ε-greedy with costs of switching: the planner of Nightjar (arXiv 2512.22420) for one context.

A context is a bucket of batch sizes. Its time is cut into bins of equal length; the arm (a γ) is locked for a bin.
Blocks of bins grow, block j has 2^(j-1); the b-th bin of a block explores with probability 1/b, that is, takes an arm
at random, and otherwise takes the arm of the smallest expected loss. The loss is time per token, 1/goodput. (b could be
read as the block's number, too. Then T bins would explore T/log T times, more than the paper's bound of Õ(√T) allows;
bench/regret has measured both.)

Departs from the paper so that a surge into sizes never seen is learnt while it lasts: a bucket first gives every likely
arm a bin, in random order (`likely`), and a bin is as long as so many iterations of one request (`bin_length`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

#: Lower ends of the buckets: single sizes where a request more changes much, then steps of a third to a half.
BUCKETS = (1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025)


#: An iteration this many times longer or shorter than its cell's mean is an outlier; so many in a row are a new load.
OUTLIER, IN_A_ROW = 4.0, 8


@dataclass(slots=True)
class Cell:
    """Mean time and tokens of one γ in one bucket. Their ratio is what throughput pays; a mean of ratios is not.

    The means forget their start (weights grow linearly: the first iterations compile and warm up) and, past ``memory``
    iterations, everything old at an even pace.
    """

    ns: float = 0.0
    tokens: float = 0.0
    count: int = 0
    outliers: int = 0

    def add(self, ns: int, tokens: int, memory: int) -> None:
        """Count one iteration of ``tokens`` committed tokens, both above 0."""
        if self.count >= IN_A_ROW and not self.ns / OUTLIER <= ns <= self.ns * OUTLIER:
            self.outliers += 1
            if self.outliers < IN_A_ROW:
                return
            self.count = 0
        self.outliers = 0
        self.count += 1
        step = max(2.0 / (self.count + 1), 1.0 / memory)
        self.ns += step * (ns - self.ns)
        self.tokens += step * (tokens - self.tokens)

    @property
    def loss(self) -> float:
        """ns per token."""
        return self.ns / self.tokens


@dataclass(slots=True)
class Bucket:
    """What is known of one bucket, by all schedulers that share it.

    Attributes:
        cells: by γ.
        bins: how many were completed.
        drawn: arms that got a bin, whether they could run or not.
    """

    cells: dict[int, Cell] = field(default_factory=dict)
    bins: int = 0
    drawn: set[int] = field(default_factory=set)

    @property
    def turn(self) -> int:
        """b, from 1: the place of the bin that follows in its block; blocks have 1, 2, 4, ... bins."""
        return self.bins + 2 - (1 << (self.bins + 1).bit_length() - 1)

    def best(self, arms: tuple[int, ...], drafting: bool, switch_ns: float) -> int | None:
        """argmin over the tried ``arms`` of loss + [not drafting and γ > 0] · switch_ns / γ; None if none was tried."""
        best, smallest = None, 0.0
        for gamma, cell in self.cells.items():
            if gamma not in arms:
                continue
            loss = cell.ns / cell.tokens
            if gamma > 0 and not drafting:
                loss += switch_ns / gamma
            if best is None or loss < smallest or (loss == smallest and gamma < best):
                best, smallest = gamma, loss
        return best


@dataclass(slots=True)
class Bin:
    """The running bin of one scheduler in one bucket.

    Attributes:
        arm: the γ that is locked.
        explores: it was drawn at random.
        run, seen: iterations that ran ``arm``, and all.
    """

    arm: int
    explores: bool
    run: int = 0
    seen: int = 0

    def step(self, gamma: int, length: int) -> bool:
        """Count an iteration that ran ``gamma``; True if the bin is over.

        Only iterations of its arm fill a bin: a plan takes a while to arrive. But an arm that never runs (the draft is
        not there) must not hold the context forever.
        """
        self.seen += 1
        self.run += gamma == self.arm
        return self.run >= length or self.seen >= 4 * length


def bin_length(iterations: int, batch_size: int) -> int:
    """Iterations of a bin at ``batch_size``: at least 2, and as many samples as ``iterations`` give at one request."""
    return max(min(2, iterations), math.ceil(iterations / batch_size))


def likely(buckets: Sequence[Bucket], index: int, arms: tuple[int, ...]) -> tuple[int, ...]:
    """Arms that may be the best of bucket ``index``, going by the nearest buckets that had a bin for every arm.

    The larger the batch the sooner the target is bound by arithmetic, so the best γ does not grow with it. Without this
    the trial of every arm in every bucket costs 6% of the throughput of loads that move (bench/regret).
    """

    def best_of(others: Iterable[Bucket]) -> int | None:
        return next((other.best(arms, True, 0.0) for other in others if other.bins >= len(arms)), None)

    most, least = best_of(reversed(buckets[:index])), best_of(buckets[index + 1 :])
    return tuple(arm for arm in arms if (most is None or arm <= most) and (least is None or arm >= least)) or arms


def next_bin(
    bucket: Bucket,
    arms: tuple[int, ...],
    drafting: bool,
    switch_ns: float,
    random: Random,
    first: tuple[int, ...] | None = None,
) -> Bin:
    """The bin that follows; ``arms`` are the candidates, of which ``first`` (None: all) each get a bin at once."""
    best = bucket.best(arms, drafting, switch_ns)
    new = [arm for arm in (arms if first is None else first) if arm not in bucket.drawn]
    if not new and best is not None and random.random() * bucket.turn >= 1.0:
        return Bin(best, False)
    choice = new or arms
    arm = choice[int(random.random() * len(choice))]
    bucket.drawn.add(arm)
    return Bin(arm, True)


def switch_cost(table: tuple[tuple[int, int, int], ...], lag: float, batch_size: int) -> float:
    """C_switch(lag, B), ns, from (lag, B, ns) rows: linear between them, the nearest's beyond; 0 if there are none."""
    if not table:
        return 0.0
    by_lag: dict[int, dict[int, int]] = {}
    for row_lag, row_size, ns in sorted(table):
        by_lag.setdefault(row_lag, {})[row_size] = ns
    costs = [float(np.interp(batch_size, list(row), list(row.values()))) for row in by_lag.values()]
    return float(np.interp(lag, list(by_lag), costs))
