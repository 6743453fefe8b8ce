"""C_switch: what going from γ=0 to γ > 0 costs, by how far the draft is behind and how many requests there are.

The paper (arXiv 2512.22420) looks it up in a table that was profiled offline. Catching up is one pass over the missing
positions in pieces, so its time is close to a constant plus a part per position; two numbers are fitted to what was
measured, by `nightjar profile` and then live, and the table that policies read is made of them.
"""

import math
from dataclasses import dataclass

#: The table's grid: largest lag of a request, tokens.
LAGS = (1, 4, 16, 64, 256, 1024, 4096)

#: What was seen counts for so many more observations; then it has half its weight.
_HALF_LIFE = 64


@dataclass
class SwitchCosts:
    """A line through (positions, ns), fitted by least squares with fading weights.

    Attributes:
        weight, x, y, xx, xy: sums over the observations; x is in positions, y in ns.
    """

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def observe(self, positions: int, ns: float) -> None:
        """Catching up ``positions`` positions took ``ns``.

        Time grows with the positions, and so does its noise: an observation counts by the inverse of the positions.
        """
        fade = 0.5 ** (1 / _HALF_LIFE)
        own = 1 / max(1, positions)
        self.weight = self.weight * fade + own
        self.x = self.x * fade + own * positions
        self.y = self.y * fade + own * ns
        self.xx = self.xx * fade + own * positions * positions
        self.xy = self.xy * fade + own * positions * ns

    def line(self) -> tuple[float, float]:
        """(ns, ns per position): what every switch costs, and what each missing position adds; neither is negative."""
        if not self.weight:
            return 0.0, 0.0
        spread = self.weight * self.xx - self.x * self.x
        if spread <= 1e-9 * self.weight * self.xx:
            return 0.0, self.y / self.x
        slope = (self.weight * self.xy - self.x * self.y) / spread
        slope = min(max(0.0, slope), self.y / self.x)
        return (self.y - slope * self.x) / self.weight, slope

    def cost(self, lag: int, batch_size: int) -> float:
        """ns to catch up ``batch_size`` requests that are all ``lag`` tokens behind."""
        fixed, slope = self.line()
        return fixed + slope * lag * batch_size

    def table(self, max_batch: int) -> tuple[tuple[int, int, int], ...]:
        """(largest lag, batch size, ns) rows as `core.messages.Hello` has them; empty as long as nothing was seen."""
        if not self.weight:
            return ()
        sizes = [2**power for power in range(math.ceil(math.log2(max(1, max_batch))) + 1)]
        return tuple((lag, size, round(self.cost(lag, size))) for lag in LAGS for size in sizes)
