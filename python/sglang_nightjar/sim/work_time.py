"""How long work takes by the clock: as expected, times noise, times the machine's pace, with stalls in between."""

import numpy as np

from sglang_nightjar.sim.costs import Costs
from sglang_nightjar.sim.pace import Pace

#: Random numbers drawn at a time.
_BLOCK = 1 << 13


class WorkTime:
    """One replica's."""

    def __init__(self, costs: Costs, random: np.random.Generator, seed: int, replica: int) -> None:
        """``random`` is for noise. Stalls and pace have chance of their own: the machine of one seed stalls after the
        same work, whatever the policy does.
        """
        self._costs, self._random = costs, random
        self._noise: list[float] = []
        self._stall_random = np.random.default_rng((seed, 3, replica))
        self._until_stall = self._next_stall()
        self._pace = Pace(costs.pace, costs.pace_s, np.random.default_rng((seed, 4, replica)))

    def of(self, expected_ns: float, now_ns: int) -> float:
        """ns that work of ``expected_ns`` takes which begins at ``now_ns``; times must not go back."""
        took = expected_ns * self._next_noise() * self._pace.at(now_ns)
        self._until_stall -= took
        while self._until_stall < 0:
            took += float(self._stall_random.exponential(self._costs.stall_ns))
            self._until_stall += self._next_stall()
        return took

    def _next_noise(self) -> float:
        if not self._noise:
            self._noise = np.exp(self._costs.noise * self._random.standard_normal(_BLOCK)).tolist()
        return self._noise.pop()

    def _next_stall(self) -> float:
        """ns of work until the machine does something else."""
        rate = self._costs.stalls_per_s
        return float(self._stall_random.exponential(1e9 / rate)) if rate else float("inf")
