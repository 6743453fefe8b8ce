"""How long the pieces of a return took, on the device that did them, without waiting for it."""

import time
from collections import deque
from typing import Any

import torch


class Stopwatch:
    """Adds up the pieces of one return, and keeps the finished ones until they are asked for.

    On a GPU the pieces are timed by events, which are read once the device has passed them.
    """

    def __init__(self, device: str):
        self._on_gpu = torch.device(device).type == "cuda"
        self._begun: Any = None
        self._pieces: list[tuple[Any, Any]] = []
        self._positions = 0
        self._counts = True
        self._ended: deque[tuple[int, list[tuple[Any, Any]]]] = deque(maxlen=64)

    def start(self) -> None:
        """A piece begins."""
        self._begun = self._now()

    def stop(self, positions: int, ends: bool, counts: bool) -> None:
        """It ends, and with it the return if ``ends``; a return of which a piece does not count is forgotten."""
        self._pieces.append((self._begun, self._now()))
        self._positions += positions
        self._counts &= counts
        if not ends:
            return
        if self._counts and self._positions:
            self._ended.append((self._positions, self._pieces))
        self._pieces, self._positions, self._counts = [], 0, True

    def finished(self) -> list[tuple[int, int]]:
        """(positions, ns) of the returns that ended since the last call and whose time is known by now."""
        known = []
        while self._ended:
            positions, pieces = self._ended[0]
            if self._on_gpu and not pieces[-1][1].query():
                break
            self._ended.popleft()
            known.append((positions, round(sum(self._between(*piece) for piece in pieces))))
        return known

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, first: Any, last: Any) -> float:
        return first.elapsed_time(last) * 1e6 if self._on_gpu else last - first
