"""What is known of one kind of server: latency and acceptance together, and what each γ is worth at each batch size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sglang_nightjar.core.draft_acceptance import DraftAcceptance, expected_tokens
from sglang_nightjar.core.kept_share import KeptShare
from sglang_nightjar.core.latency_model import SIZES, LatencyModel, bucket
from sglang_nightjar.core.messages import LONGEST_ITERATION_NS, Residency, Telemetry
from sglang_nightjar.core.objective import Objective, worth
from sglang_nightjar.core.prefill_stalls import PrefillStalls

#: A γ that is better by less is no better.
MARGIN = 0.002
_SIZES = np.array(SIZES, float)
#: Acceptance moves faster than costs: iterations between two looks at it alone.
_LOOK_EVERY = 8
#: Share of iterations with a prefill in them from which on they are learned from, too.
_MOSTLY_SHARED = 0.3
#: How many standard deviations a γ may be better than it looks.
_OPTIMISM = 2.0
_COUNTS = frozenset({Residency.RESIDENT, Residency.PARKED, Residency.OFFLOADED})


class Speculation:
    """Learns from all schedulers of its kind.

    Attributes:
        gammas: candidates.
        mean, optimistic: by bucket and index of γ, what it is worth, and what it may be worth.
        best: by bucket, the index of the γ of the largest mean.
        version: changes with them.
        iterations: told so far.
        sharers: schedulers that learn together; each looks anew as often as one alone would.
    """

    def __init__(self, gammas: tuple[int, ...], objective: Objective) -> None:
        self.gammas, self.objective = gammas, objective
        self.latency = LatencyModel(gammas)
        self.acceptance = DraftAcceptance(gammas[-1])
        #: Of drafts that would be accepted, and of all drafts: the share that is verified.
        self.kept, self.verified = KeptShare(gammas), KeptShare(gammas)
        self.catch_up, self.prefill = Line(), Line()
        self.mean: list[list[float]] = [[0.0] * len(gammas) for _ in SIZES]
        self.optimistic = self.mean
        self.best: list[int] = [0] * len(SIZES)
        self.version = self.iterations = 0
        self.sharers = 1
        self.stalls, self.arrivals_per_ns = PrefillStalls(), 0.0
        self._fitted, self._next_fit, self._next_look = 0, 1, 1

    def learn(self, record: Telemetry) -> bool:
        """One iteration. Absurd values are left out, whatever they are. True if its time taught something."""
        self.iterations += 1
        size, gamma, ns = record.batch_size, record.gamma, record.iteration_ns
        drifted = taught = False
        every = size * (gamma + 1)
        # Written so that a NaN fails it.
        rows = record.rows if size <= record.rows <= every else every
        if gamma == 0:
            self.acceptance.iterations += 1
        elif len(record.accepted) == gamma and _sane(record.accepted, size):
            drifted = self.acceptance.add(size, record.accepted)
            likely = sum(record.accepted)
            index, column = bucket(size), self.gammas.index(gamma)
            self.kept.add(index, column, max(0, record.committed - size), likely)
            self.verified.add(index, column, rows - size, every - size)
        if 0 < ns <= LONGEST_ITERATION_NS:
            shared = record.prefill_tokens > 0
            self.stalls.add(shared, ns)
            if record.residency in _COUNTS and 0 <= record.context_tokens < 1 << 40:
                alone = self._without_prefill(record) if shared else ns
                if alone is not None:
                    context = record.context_tokens
                    self.latency.add(size, gamma, alone, context, self.iterations, exact=not shared, rows=rows)
                    taught = True
        if self.iterations >= self._next_fit:
            self.fit()
        elif drifted or self.iterations >= self._next_look:
            self._weigh()
        return taught

    def _without_prefill(self, record: Telemetry) -> float | None:
        """Time of an iteration less that of the prefill in it; None unless such iterations are most of what there is.

        The same line is taken off every γ, so it can't make one look better than another.
        """
        tokens, ns = record.prefill_tokens, record.iteration_ns
        if not 0 < tokens < 1 << 32 or not self.version:
            return None
        expected = self.latency.expected_ns(record.batch_size, record.gamma)
        if ns < 20 * expected:
            self.prefill.add(tokens, max(0.0, ns - expected))
        usual = self.prefill.expected(tokens)
        if self.stalls.share < _MOSTLY_SHARED or usual is None or usual > 0.5 * ns:
            return None
        return ns - usual

    def fit_soon(self) -> None:
        """Something was found out: `fit` now, but once in a turn of those who share at most."""
        self._next_fit = min(self._next_fit, self._fitted + self.sharers)
        if self.iterations >= self._next_fit:
            self.fit()

    def fit(self) -> None:
        """Bring what each γ is worth up to date."""
        done = self._fitted = self.iterations
        # Often while little is known, and never more than a few microseconds per iteration.
        usual = 64 if self.sharers < 8 else 8 * self.sharers
        self._next_fit = done + (1 if done < 8 else 4 if done < 64 else 16 if done < 512 else usual)
        self.latency.fit(done, self.verified.shares())
        self.acceptance.check()
        self._weigh()

    def _weigh(self) -> None:
        self._next_look = self.iterations + _LOOK_EVERY * self.sharers
        rates = self.acceptance.rates()
        tokens = np.array(expected_tokens([rate for rate, _ in rates], self.gammas))
        variance = np.array(_token_variance([rate for rate, _ in rates], self.gammas))
        kept = self.kept.shares()
        tokens, variance = 1.0 + kept * (tokens - 1.0), kept * variance
        deviation = kept * np.array(_token_deviation(rates, self.gammas)) / tokens
        # Bounds of an objective and prefills are times as they are at present.
        ns = self.latency.present_ns
        ns = ns + self.stalls.added_ns(ns, self.prefill.expected(0) or 0.0)
        mean = worth(self.objective, _SIZES, ns, tokens, variance, self.arrivals_per_ns, self.stalls.share)
        unsure = np.sqrt(deviation**2 + self.latency.deviation**2)
        most = np.array(self.gammas, float) + 1.0
        self.mean, self.best = mean.tolist(), mean.argmax(1).tolist()
        self.optimistic = (mean * np.minimum(1.0 + _OPTIMISM * unsure, 1.2 * most / tokens)).tolist()
        self.version += 1

    def state(self) -> dict[str, Any]:
        """What `restore` takes; plain JSON."""
        return {
            "latency": self.latency.state(),
            "acceptance": [[p.trials, p.hits] for p in self.acceptance.positions],
            "kept": self.kept.state(),
            "verified": self.verified.state(),
            "catch_up": self.catch_up.sums,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a saved state. Raises ValueError, LookupError or TypeError for nonsense, and then nothing changed."""
        kept, verified = KeptShare(self.gammas), KeptShare(self.gammas)
        kept.restore(state["kept"])
        verified.restore(state["verified"])
        latency = LatencyModel(self.gammas)
        latency.restore(state["latency"], verified.shares())
        acceptance = DraftAcceptance(self.gammas[-1])
        for position, (trials, hits) in zip(acceptance.positions, state["acceptance"], strict=False):
            if (
                len(trials) != 3
                or len(hits) != 3
                or not all(0 <= h <= t < 1e12 for h, t in zip(hits, trials, strict=True))
            ):
                raise ValueError(f"acceptance of {hits} in {trials}")
            # The load may be another one by now: believed, but not for long.
            scale = min(1.0, 200.0 / max(trials[2], 1.0))
            position.trials, position.hits = [0.0, 0.0, trials[2] * scale], [0.0, 0.0, hits[2] * scale]
        catch_up = Line()
        catch_up.sums = [float(value) for value in state["catch_up"]]
        if len(catch_up.sums) != 5 or not all(0 <= value < 1e30 for value in catch_up.sums):
            raise ValueError(f"catch-up sums {catch_up.sums}")
        self.latency, self.acceptance, self.catch_up = latency, acceptance, catch_up
        self.kept, self.verified = kept, verified
        self.fit()


class Line:
    """ns as a line in tokens, neither fixed nor per token below 0, by least squares over the last dozens of readings.

    Attributes:
        sums: weights, tokens, squared tokens, ns, ns times tokens.
    """

    def __init__(self) -> None:
        self.sums = [0.0] * 5

    def add(self, tokens: int, ns: float) -> None:
        """One reading."""
        for index, value in enumerate((1.0, tokens, tokens * tokens, ns, ns * tokens)):
            self.sums[index] = 0.97 * self.sums[index] + value

    def expected(self, tokens: float) -> float | None:
        """None while nothing is known."""
        n, x, xx, y, xy = self.sums
        if n <= 0:
            return None
        spread = n * xx - x * x
        slope = max(0.0, (n * xy - x * y) / spread) if spread > 1e-9 * n * xx and n > 1.5 else 0.0
        return max(0.0, y / n + slope * (tokens - x / n))


def _sane(accepted: tuple[int, ...], most: int) -> bool:
    for hits in accepted:
        if type(hits) is not int or not 0 <= hits <= most:
            return False
        most = hits
    return True


def _token_variance(rates: list[float], gammas: tuple[int, ...]) -> list[float]:
    """Variance of one request's tokens in an iteration."""
    found, survival, first, second = {0: 0.0}, 1.0, 0.0, 0.0
    for index, rate in enumerate(rates):
        survival *= rate
        first += survival
        second += (2 * index + 1) * survival
        found[index + 1] = max(0.0, second - first * first)
    return [found[gamma] for gamma in gammas]


def _token_deviation(rates: list[tuple[float, float]], gammas: tuple[int, ...]) -> list[float]:
    """Standard deviation of our estimate of the expected tokens, to first order."""
    survival = [1.0]
    for rate, _ in rates:
        survival.append(survival[-1] * rate)
    found = []
    for gamma in gammas:
        total, tail = 0.0, 0.0
        for index in range(gamma, 0, -1):
            tail += survival[index]
            rate, deviation = rates[index - 1]
            total += (tail / rate * deviation) ** 2
        found.append(math.sqrt(total))
    return found
