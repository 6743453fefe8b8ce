"""How long the steps of the draft's way out and back take, and how much of it on the scheduler's thread."""

import statistics
import time
from collections import deque
from collections.abc import Callable

#: In the order in which they happen. ``wait`` is for room, and takes as long as requests need it.
STEPS = ("offload", "grow", "wait", "empty", "shrink", "load", "catch_up")

#: Medians are of so many.
_RECENT = 16


class StepTimes:
    """Of the steps that were completed; what was turned back or failed does not count.

    Attributes:
        earlier: what another run of this server noted, as `table`; for steps that were not taken yet in this one.
    """

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns):
        self.earlier: dict[str, dict[str, float]] = {}
        self._clock = clock
        self._seen: dict[str, deque[tuple[int, int]]] = {}
        self._began = self._busy = self._piece = 0

    def begin(self) -> None:
        """A step begins."""
        self._began, self._busy = self._clock(), 0

    def piece_begins(self) -> None:
        self._piece = self._clock()

    def piece_ends(self) -> None:
        self._busy += self._clock() - self._piece

    def end(self, step: str) -> None:
        """The step that began last is done."""
        seen = self._seen.setdefault(step, deque(maxlen=_RECENT))
        seen.append((self._clock() - self._began, self._busy))

    def table(self) -> dict[str, dict[str, float]]:
        """By step: ``ms`` until it was done and ``busy_ms`` on the scheduler's thread, medians; plain JSON types."""
        table = {}
        for step in STEPS:
            if seen := self._seen.get(step):
                pairs = list(seen)
                times = [round(statistics.median(column) / 1e6, 3) for column in zip(*pairs, strict=True)]
                table[step] = {"ms": times[0], "busy_ms": times[1]}
            elif step in self.earlier:
                table[step] = self.earlier[step]
        return table
