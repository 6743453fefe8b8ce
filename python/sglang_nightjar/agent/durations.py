"""How long something that happens often has taken lately."""

from collections import deque
from dataclasses import dataclass

_KEPT = 1024


@dataclass(frozen=True)
class Percentiles:
    """Microseconds."""

    p50: float
    p99: float


class Durations:
    """Keeps the last 1,024 of one kind."""

    def __init__(self) -> None:
        self._kept: deque[int] = deque(maxlen=_KEPT)

    def note(self, ns: int) -> None:
        """It took ``ns``."""
        self._kept.append(ns)

    def percentiles(self) -> Percentiles:
        """Zero before the first. Any thread may ask."""
        ordered = sorted(self._kept.copy())
        if not ordered:
            return Percentiles(0.0, 0.0)
        return Percentiles(*(ordered[int(share * (len(ordered) - 1))] / 1000 for share in (0.5, 0.99)))
