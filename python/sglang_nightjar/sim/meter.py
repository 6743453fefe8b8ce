"""What a replica did, and what it would have done with the best γ of each moment."""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np

from sglang_nightjar.core.prefill_stalls import PrefillStalls
from sglang_nightjar.sim.loads import Request
from sglang_nightjar.sim.setup import Setup

#: Iterations that are summed up together.
_BLOCK = 1024


class Meter:
    """Counts of one replica.

    The oracle knows the costs and the acceptance in force; for each iteration it takes the γ of the most expected
    tokens per expected second for that very batch, prefills after it included (`PrefillStalls`). ``got`` and ``could``
    are expectations too: what noise gave or took is no regret. Catching up is the policy's own time: the oracle's draft
    is always there.

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
        self._column = {gamma: index for index, gamma in enumerate(self._candidates)}
        self._base = np.zeros((0, len(self._candidates)))
        self._expected = np.ones((1, len(self._candidates)))
        self._gamma = setup.engine.start_gamma
        self._stalls, self._prefilled_ns, self._prefill_fixed_ns = PrefillStalls(), 0.0, setup.costs.prefill_ns(1)
        #: Iterations that are not yet summed up: size, γ, context, ns; and requests by class.
        self._sizes, self._gammas, self._contexts, self._ns = array("q"), array("q"), array("q"), array("d")
        self._kinds: list[list[int]] = []

    def prefill(self, took_ns: float) -> None:
        """A prefill iteration."""
        self.prefill_ns += took_ns
        self._prefilled_ns += took_ns

    def set_survival(self, survival: np.ndarray) -> None:
        """Acceptance changed; float64[classes, positions]."""
        self.settle()
        sums = 1.0 + np.concatenate([np.zeros((len(survival), 1)), np.cumsum(survival, 1)], 1)
        self._expected = sums[:, self._candidates]

    def decode(self, kinds: list[int], size: int, gamma: int, context: int, ns: float, took_ns: float) -> None:
        """A decode iteration of ``gamma``: expected ns with moves of the draft, and as it came."""
        self.iterations += 1
        self.decode_ns += took_ns
        self._stalls.add(self._prefilled_ns > 0, self._prefilled_ns + took_ns)
        self._prefilled_ns = 0.0
        self.batch_total += size
        if gamma != self._gamma:
            self.switches += 1
            self._gamma = gamma
        self._sizes.append(size)
        self._gammas.append(gamma)
        self._contexts.append(context)
        self._ns.append(ns)
        if len(kinds) > 1:
            self._kinds.append(kinds.copy())
        if len(self._sizes) >= _BLOCK:
            self.settle()
        if self.mark and self.iterations % self.mark == 0:
            self.settle()
            self.history.append((self.iterations, self.got, self.could))

    def settle(self) -> None:
        """Sum up what came since the last time: one call of numpy for many iterations."""
        if not self._sizes:
            return
        sizes, gammas, contexts = (np.array(x) for x in (self._sizes, self._gammas, self._contexts))
        kinds = np.array(self._kinds) if self._kinds else sizes[:, None]
        tokens = kinds @ self._expected
        rates = tokens / self._with_prefills(self._cost(sizes, contexts))
        best = rates.argmax(1)
        rows = np.arange(len(sizes))
        columns = np.array([self._column[gamma] for gamma in self._gammas])
        self.got += float(tokens[rows, columns].sum())
        self.could += float(rates[rows, best] @ self._with_prefills(np.array(self._ns)))
        self.shares.update(gammas.tolist())
        self.best_shares.update(self._candidates[index] for index in best.tolist())
        for kept in (self._sizes, self._gammas, self._contexts, self._ns, self._kinds):
            del kept[:]

    def best(self, kinds: list[int], size: int, context: int) -> int:
        """The oracle's γ."""
        tokens = np.array(kinds) @ self._expected
        cost = self._with_prefills(self._cost(np.array([size]), np.array([context])))
        return self._candidates[int((tokens / cost[0]).argmax())]

    def _with_prefills(self, ns: np.ndarray) -> np.ndarray:
        return ns + self._stalls.added_ns(ns, self._prefill_fixed_ns)

    def _cost(self, sizes: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """float64[iterations, gammas], ns."""
        known, most = len(self._base), int(sizes.max())
        if most >= known:
            more = [
                [self._costs.decode_ns(size, gamma) for gamma in self._candidates] for size in range(known, most + 1)
            ]
            self._base = np.concatenate([self._base, np.array(more)])
        return np.asarray(self._base[sizes] + self._costs.context_ns * contexts[:, None])

    def finished(self, request: Request, now_ns: int, overshoot: int) -> None:
        """A request has all its tokens; the last iteration gave it ``overshoot`` too many."""
        self.tokens -= overshoot
        request.end_ns = now_ns
        self.ttft_ns.append(request.first_ns - request.arrival_ns)
        self.latency_ns.append(now_ns - request.arrival_ns)
        self.outputs.append(request.total)
