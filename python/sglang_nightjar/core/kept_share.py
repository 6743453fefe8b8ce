"""How much of what would be accepted is verified at all, where a scheduler leaves unlikely drafts out (`Plan.trim`).

The more requests decode together, and the more is drafted for each, the more is left out; so this is known by cell, a
batch size and a γ, as the time is. Cells that saw little take their neighbours' share, as far as these know it, and 1
where nobody knows: what then looks too good is tried, and known.
"""

from typing import Any

import numpy as np

from sglang_nightjar.core.latency_model import NEIGHBOURS, SIZES

#: Drafts that a cell remembers, and how many its prior counts for.
_REMEMBERED, _PRIOR = 1000.0, 10.0


class KeptShare:
    """Sums of drafts by cell: those accepted, and those that were or would have been."""

    def __init__(self, gammas: tuple[int, ...]) -> None:
        """For these candidates."""
        self._gammas = gammas
        self._accepted = np.zeros((len(SIZES), len(gammas)))
        self._likely = np.zeros((len(SIZES), len(gammas)))

    def add(self, index: int, column: int, accepted: int, likely: int) -> None:
        """One iteration; at most ``likely`` count as ``accepted``."""
        fade = max(0.0, 1.0 - likely / _REMEMBERED)
        for sums, drafts in ((self._accepted, min(accepted, likely)), (self._likely, likely)):
            sums[index, column] = fade * sums[index, column] + drafts

    def shares(self) -> np.ndarray:
        """float64[sizes, gammas], each in 0 to 1."""
        accepted, likely = NEIGHBOURS @ self._accepted + _PRIOR, NEIGHBOURS @ self._likely + _PRIOR
        return np.asarray((self._accepted + _PRIOR * accepted / likely) / (self._likely + _PRIOR))

    def state(self) -> list[list[float]]:
        """[index, γ, accepted, likely] of each cell that saw any."""
        return [
            [int(index), self._gammas[column], float(self._accepted[index, column]), float(self._likely[index, column])]
            for index, column in np.argwhere(self._likely > 0)
        ]

    def restore(self, state: Any) -> None:
        """Take up `state`; cells of other γ are left out. Raises ValueError or TypeError for nonsense."""
        for index, gamma, accepted, likely in state:
            if not (0 <= index < len(SIZES) and 0 <= accepted <= likely < 1e12):
                raise ValueError(f"cell {index}, γ={gamma}: {accepted} accepted of {likely} likely drafts")
            if gamma in self._gammas:
                cell = int(index), self._gammas.index(gamma)
                self._accepted[cell], self._likely[cell] = accepted, likely
