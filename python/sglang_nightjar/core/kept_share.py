"""How much is left where a scheduler leaves unlikely drafts out of verification (`Plan.trim`): of the drafts, and of
those that would be accepted.

The more requests decode together, and the more is drafted for each, the more is left out; so this is known by cell, a
batch size and a γ, as the time is. Cells that saw little take their neighbours' share, as far as these know it, and 1
where nobody knows, as if nothing were left out.
"""

from typing import Any

import numpy as np

from sglang_nightjar.core.latency_model import NEIGHBOURS, SIZES

#: Drafts that a cell remembers, and how many its prior counts for.
_REMEMBERED, _PRIOR = 1000.0, 10.0


class KeptShare:
    """Sums of drafts by cell: those that are left, and all."""

    def __init__(self, gammas: tuple[int, ...]) -> None:
        """For these candidates."""
        self._gammas = gammas
        self._kept = np.zeros((len(SIZES), len(gammas)))
        self._all = np.zeros((len(SIZES), len(gammas)))

    def add(self, index: int, column: int, kept: int, drafts: int) -> None:
        """One iteration; at most ``drafts`` count as ``kept``."""
        fade = max(0.0, 1.0 - drafts / _REMEMBERED)
        for sums, number in ((self._kept, min(kept, drafts)), (self._all, drafts)):
            sums[index, column] = fade * sums[index, column] + number

    def shares(self) -> np.ndarray:
        """float64[sizes, gammas], each in 0 to 1."""
        kept, drafts = NEIGHBOURS @ self._kept + _PRIOR, NEIGHBOURS @ self._all + _PRIOR
        return np.asarray((self._kept + _PRIOR * kept / drafts) / (self._all + _PRIOR))

    def state(self) -> list[list[float]]:
        """[index, γ, kept, drafts] of each cell that saw any."""
        return [
            [int(index), self._gammas[column], float(self._kept[index, column]), float(self._all[index, column])]
            for index, column in np.argwhere(self._all > 0)
        ]

    def restore(self, state: Any) -> None:
        """Take up `state`; cells of other γ are left out. Raises ValueError or TypeError for nonsense."""
        for index, gamma, kept, drafts in state:
            if not (0 <= index < len(SIZES) and 0 <= kept <= drafts < 1e12):
                raise ValueError(f"cell {index}, γ={gamma}: {kept} kept of {drafts} drafts")
            if gamma in self._gammas:
                cell = int(index), self._gammas.index(gamma)
                self._kept[cell], self._all[cell] = kept, drafts
