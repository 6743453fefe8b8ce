"""Which drafts the target accepts: by position, by class of requests, drifting over time."""

from dataclasses import dataclass, field

import numpy as np

#: A drift is followed in steps of this length.
STEP_NS = 500_000_000


@dataclass(frozen=True)
class RequestClass:
    """Requests of one kind.

    Attributes:
        share: of all requests, relative to the other classes.
        rates: at position i the share of accepted drafts among those whose predecessors were accepted; the last one
            holds for all further positions.
    """

    rates: tuple[float, ...]
    share: float = field(default=1.0, metadata={"min": 0.0})

    def __post_init__(self) -> None:
        if not self.rates or not all(0 <= rate <= 1 for rate in self.rates):
            raise ValueError(f"rates: {self.rates!r} must be a list of numbers from 0 to 1")


@dataclass(frozen=True)
class Acceptance:
    """Attributes:
    classes: kinds of requests.
    drift: (second, factor) points, linear between them, on all rates; none: 1.
    """

    classes: tuple[RequestClass, ...]
    drift: tuple[tuple[float, ...], ...] = ()

    def factor(self, now_ns: float) -> float:
        """What the drift has come to."""
        if not self.drift:
            return 1.0
        times, factors = zip(*self.drift, strict=True)
        return float(np.interp(now_ns / 1e9, times, factors))

    def survival(self, now_ns: float, longest: int) -> np.ndarray:
        """float64[classes, longest]: probability that the drafts up to and with a position are all accepted."""
        factor = self.factor(now_ns)
        rows = []
        for kind in self.classes:
            rates = np.array([kind.rates[min(i, len(kind.rates) - 1)] for i in range(longest)])
            rows.append(np.cumprod(np.clip(rates * factor, 0.0, 0.99)))
        return np.array(rows).reshape(len(self.classes), longest)

    def shares(self) -> np.ndarray:
        """float64[classes], sums to 1."""
        shares = np.array([kind.share for kind in self.classes])
        return shares / shares.sum()
