"""What the agent costs the scheduler's thread, per iteration."""

from dataclasses import dataclass

_KEPT = 4096


@dataclass(frozen=True)
class Percentiles:
    """Microseconds per iteration, decode or prefill, over the last few thousand."""

    p50: float
    p99: float


class Overhead:
    """Adds up the parts of one iteration, and keeps the sums of the last ones."""

    def __init__(self) -> None:
        self._current_ns = 0
        self._ring: list[int] = []
        self._next = 0

    def add(self, ns: int) -> None:
        """A part of the current iteration took ``ns``."""
        self._current_ns += ns

    def close_iteration(self) -> None:
        """The current iteration has ended."""
        if len(self._ring) < _KEPT:
            self._ring.append(self._current_ns)
        else:
            self._ring[self._next] = self._current_ns
            self._next = (self._next + 1) % _KEPT
        self._current_ns = 0

    def drop_iteration(self) -> None:
        """There was no iteration: the scheduler is idle."""
        self._current_ns = 0

    def percentiles(self) -> Percentiles:
        """Zero before the first iteration."""
        if not self._ring:
            return Percentiles(0.0, 0.0)
        ordered = sorted(self._ring)
        return Percentiles(*(ordered[int(share * (len(ordered) - 1))] / 1000 for share in (0.5, 0.99)))
