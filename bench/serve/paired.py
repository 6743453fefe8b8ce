"""Two arms over the same loads: the ratio of a figure, with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Ratio:
    """Attributes:
    value: geometric mean of the pairs' ratios.
    low, high: its 95% confidence interval; NaN with fewer than two pairs.
    pairs: how many.
    """

    value: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "no data"
        interval = "" if math.isnan(self.low) else f" ({self.low:.2f} to {self.high:.2f})"
        return f"×{self.value:.2f}{interval}"


def ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Ratio:
    """``ours`` over ``theirs``, by repetition; those that only one of them has are left out.

    Student's t on the logarithms of the pairs' ratios: what is common to both runs of a pair (the load, and what the
    machine did meanwhile) cancels out.
    """
    pairs = [(ours[key], theirs[key]) for key in ours if key in theirs]
    mean, half = mean_and_half([math.log(a / b) for a, b in pairs if a > 0 and b > 0])
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(pairs))


def mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95% interval by Student's t; NaN where there are too few values."""
    count = len(values)
    mean = sum(values) / count if count else math.nan
    if count < 2:
        return mean, math.nan
    from scipy import stats

    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * math.sqrt(variance / count)
