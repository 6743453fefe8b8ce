"""When requests arrive, as seconds from the beginning. An open loop: nothing here depends on how fast answers come."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_nightjar.sim import loads


def poisson(rate: float, start: float, end: float, draw: random.Random) -> list[float]:
    """A Poisson process of ``rate`` per second on [start, end): exponential gaps."""
    times, now = [], start
    while rate > 0:
        now += draw.expovariate(rate)
        if now >= end:
            break
        times.append(now)
    return times


def varying_poisson(rate: Callable[[float], float], peak: float, seconds: float, draw: random.Random) -> list[float]:
    """A Poisson process whose rate at t is ``rate(t)``, never above ``peak``, on [0, seconds).

    By thinning (Lewis and Shedler 1979): arrivals of the peak rate, each kept with probability rate(t) / peak.
    """
    return [t for t in poisson(peak, 0.0, seconds, draw) if draw.random() * peak < rate(t)]


def burst(size: int, start: float, within: float, draw: random.Random) -> list[float]:
    """``size`` arrivals, each at an independent uniform time of [start, start + within)."""
    return sorted(start + within * draw.random() for _ in range(size))


def day(low: float, high: float, seconds: float) -> Callable[[float], float]:
    """One day in ``seconds``: a cosine from ``low`` at both ends to ``high`` in the middle."""
    return lambda t: low + (high - low) * (1 - math.cos(2 * math.pi * t / seconds)) / 2


@dataclass(frozen=True)
class TraceRow:
    """A request of a trace: seconds since its first one, and tokens in and out."""

    at: float
    prompt_tokens: int
    new_tokens: int


def read_trace(path: Path) -> list[TraceRow]:
    """A file like Azure's ``AzureLLMInferenceTrace_*.csv``, in order of time. Raises ConfigError."""
    return [TraceRow(*row) for row in loads.read_trace(path)]


def replay(rows: Sequence[TraceRow], rate: float, seconds: float, draw: random.Random) -> list[TraceRow]:
    """The whole trace in ``seconds``, with ``rate`` requests per second on average, each of them one of the trace's.

    A piece of a trace at its own pace may be a lull from end to end (a third of the half minutes of Azure's code trace
    of 2023 are empty); hours of it in minutes have the lulls and the rushes of the whole. Times are the replay's.
    """
    factor = seconds / (rows[-1].at + 1e-6)
    chosen = sorted(draw.choices(rows, k=round(rate * seconds)), key=lambda row: row.at)
    return [TraceRow(row.at * factor, row.prompt_tokens, row.new_tokens) for row in chosen]
