"""How many drafts of each request are accepted, by chance."""

import numpy as np

from sglang_nightjar.sim.acceptance import STEP_NS, Acceptance

#: Random numbers drawn at a time.
_BLOCK = 1 << 13


class DraftLuck:
    """Attributes:
    survival: float64[classes, longest], `Acceptance.survival` as it is in force.
    """

    def __init__(self, acceptance: Acceptance, longest: int, random: np.random.Generator) -> None:
        """``longest``: drafts of a request at most."""
        self._acceptance, self._longest, self._random = acceptance, longest, random
        self.survival: np.ndarray = np.zeros((1, 1))
        self._holds_until = -1
        #: int64[classes, block]: drafts that would be accepted of each, if so many were drafted; and how many are used.
        self._lengths, self._used = np.zeros((1, 0), np.int64), 0

    def at(self, now_ns: int) -> bool:
        """It is ``now_ns``. True if `survival` changed."""
        if now_ns < self._holds_until:
            return False
        self.survival = self._acceptance.survival(now_ns, self._longest)
        self._lengths = self._lengths[:, :0]
        self._holds_until = now_ns + STEP_NS if self._acceptance.drift else 2**62
        return True

    def draw(self, kinds: np.ndarray) -> np.ndarray:
        """int64[n]: drafts that would be accepted of each of n requests, given their classes."""
        count = len(kinds)
        if self._used + count > self._lengths.shape[1]:
            # Of a drift a block is used up within a step; more than that would be drawn for nothing.
            drawn = self._random.random(max(count, 1024 if self._acceptance.drift else _BLOCK))
            # A draft of position i is accepted where the number drawn is below survival i, which falls with i.
            self._lengths = np.array([np.searchsorted(-row, -drawn) for row in self.survival])
            self._used = 0
        at, self._used = self._used, self._used + count
        if len(self._lengths) == 1:
            return self._lengths[0, at : self._used]
        return self._lengths[kinds, np.arange(at, self._used)]
