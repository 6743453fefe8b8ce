"""How many requests arrive per second, from reports that only come when some did."""

import math

#: ns over which arrivals are remembered.
_MEMORY_NS = 10e9


class ArrivalRate:
    """Requests by an exponential window in time, so that silence counts: each weighs less the longer it is ago.

    It starts at nothing and takes some seconds to believe in a load.
    """

    def __init__(self) -> None:
        self._requests = 0.0
        self._at_ns: int | None = None

    def add(self, requests: int, at_ns: int) -> None:
        """``requests`` arrived in the interval that ended at ``at_ns``."""
        self._requests = self._faded(at_ns) + requests
        self._at_ns = at_ns

    def per_ns(self, now_ns: int) -> float:
        """Requests per ns as of ``now_ns``, of the same clock as the reports."""
        return self._faded(now_ns) / _MEMORY_NS

    def _faded(self, now_ns: int) -> float:
        # A clock that went back says nothing about how long ago it was.
        silent = 0 if self._at_ns is None else max(0, now_ns - self._at_ns)
        return self._requests * math.exp(-silent / _MEMORY_NS)
