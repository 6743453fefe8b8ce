"""The pace of a machine that others share: everything takes longer for a while, whatever it is."""

import math

import numpy as np

#: A pace holds so long; between two it moves on.
STEP_NS = 250_000_000


class Pace:
    """An Ornstein-Uhlenbeck process of the logarithm of what an iteration takes, in virtual time."""

    def __init__(self, deviation: float, lasts_s: float, random: np.random.Generator) -> None:
        """Standard deviation of the logarithm; time after which its correlation is 1/e."""
        self._deviation, self._random = deviation, random
        self._keeps = math.exp(-STEP_NS / 1e9 / lasts_s) if deviation else 0.0
        self._log, self._step = deviation * float(random.standard_normal()), 0

    def at(self, now_ns: int) -> float:
        """Factor on the time of what starts at ``now_ns``; times must not go back."""
        if not self._deviation:
            return 1.0
        while self._step < now_ns // STEP_NS:
            self._step += 1
            shock = math.sqrt(1 - self._keeps**2) * self._deviation * float(self._random.standard_normal())
            self._log = self._keeps * self._log + shock
        return math.exp(self._log)
