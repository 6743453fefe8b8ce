"""What a replica did, and what it would have done with the best γ of each moment."""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np

from sglang_nightjar.sim.loads import Request
from sglang_nightjar.sim.setup import Setup


class Meter:
    """Counts of one replica.

    The oracle knows the costs and the acceptance in force; for each iteration it takes the γ of the most expected
    tokens per expected second for that very batch. ``got`` and ``could`` are expectations too: what noise gave or took
    is no regret. Catching up is the policy's own time: the oracle's draft is always there.

    Attributes:
        tokens: that requests were given.
        iterations, shares: decode iterations, all and by γ.
        decode_ns, prefill_ns: time in them.
        got, could: expected tokens of the γ that ran, and of the oracle's in the same time.
        history: (got, could) after every `mark` iterations, for curves.
        retractions, refused, offloads, switches: counts.
        ttft_ns, latency_ns, outputs: of finished requests.
    """

    def __init__(self, setup: Setup) -> None:
        self.tokens = self.iterations = self.retractions = self.refused = self.offloads = self.switches = 0
        self.decode_ns = self.prefill_ns = self.got = self.could = 0.0
        self.shares: Counter[int] = Counter()
        self.best_shares: Counter[int] = Counter()
        self.batch_total = 0
        self.ttft_ns, self.latency_ns, self.outputs = array("q"), array("q"), array("q")
        self.history: list[tuple[int, float, float]] = []
        self.mark = 0
        self._costs = setup.costs
        self._candidates = setup.engine.candidates
        self._bases: dict[int, list[float]] = {}
        self._expected: list[list[float]] = []
        self._gamma = setup.engine.start_gamma

    def prefill(self, took_ns: float) -> None:
        """A prefill iteration."""
        self.prefill_ns += took_ns

    def set_survival(self, survival: np.ndarray) -> None:
        """Acceptance changed; float64[classes, positions]."""
        sums = 1.0 + np.concatenate([np.zeros((len(survival), 1)), np.cumsum(survival, 1)], 1)
        self._expected = [[float(row[gamma]) for gamma in self._candidates] for row in sums]

    def decode(
        self, kinds: list[int], size: int, gamma: int, context: int, base_ns: float, extra_ns: float, took_ns: float
    ) -> None:
        """A decode iteration of ``gamma``: expected ns without moves of the draft, those, and all as it came."""
        self.iterations += 1
        self.decode_ns += took_ns
        self.shares[gamma] += 1
        self.batch_total += size
        if gamma != self._gamma:
            self.switches += 1
            self._gamma = gamma
        index, rate, tokens = self.best(kinds, size, context, gamma)
        self.best_shares[self._candidates[index]] += 1
        self.got += tokens
        self.could += rate * (base_ns + extra_ns)
        if self.mark and self.iterations % self.mark == 0:
            self.history.append((self.iterations, self.got, self.could))

    def best(self, kinds: list[int], size: int, context: int, gamma: int) -> tuple[int, float, float]:
        """Index of the oracle's γ, its expected tokens per ns, and expected tokens of ``gamma``."""
        bases = self._bases.get(size)
        if bases is None:
            bases = self._bases[size] = [self._costs.decode_ns(size, other) for other in self._candidates]
        over = self._costs.context_ns * context
        best, rate, own = 0, 0.0, 0.0
        for index, base in enumerate(bases):
            tokens = 0.0
            for count, expected in zip(kinds, self._expected):  # noqa: B905
                if count:
                    tokens += count * expected[index]
            if tokens > rate * (base + over):
                best, rate = index, tokens / (base + over)
            if self._candidates[index] == gamma:
                own = tokens
        return best, rate, own

    def finished(self, request: Request, now_ns: int, overshoot: int) -> None:
        """A request has all its tokens; the last iteration gave it ``overshoot`` too many."""
        self.tokens -= overshoot
        request.end_ns = now_ns
        self.ttft_ns.append(request.first_ns - request.arrival_ns)
        self.latency_ns.append(now_ns - request.arrival_ns)
        self.outputs.append(request.total)
