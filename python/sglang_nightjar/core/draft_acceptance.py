"""How many drafts are accepted: one rate per position, learned from every γ and every batch size, alert to drift.

In a chain, draft i is judged only if those before it were accepted, and what was drafted up to i does not depend on γ.
So an iteration of any γ teaches the rates of positions 1 to γ, and tokens per request are 1 + Σ Π rates.

Each position keeps three exponential windows. The longest one counts, until a shorter one contradicts it: then it
starts anew from what the shorter one has seen (two-window change detection, as ADWIN, Bifet and Gavalda 2007).
"""

import math
from dataclasses import dataclass, field

#: Iterations that the windows remember.
FAST, MIDDLE, SLOW = 24.0, 160.0, 2048.0
#: Standard deviations by which a window must contradict the longest one. Requests differ, so iterations are not
#: independent, and the usual 3 would see drift everywhere.
_CONTRADICTS = 4.0
_ENOUGH_TRIALS = 12.0
#: A position never seen has the rate of the one before it, as if so many trials had said so; the first one this rate.
_PRIOR_TRIALS, _FIRST_RATE = 4.0, 0.6
#: Variance that an iteration without a look adds: after 1,500 of them anything within 0.15 is possible.
_DRIFT = 0.15**2 / 1500
_CHECK_EVERY = 8


@dataclass(slots=True)
class _Position:
    trials: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    hits: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seen: int = 0


class DraftAcceptance:
    """Attributes:
    iterations: iterations told, those of γ=0 included.
    changes: how often drift was seen.
    """

    def __init__(self, longest: int) -> None:
        self.positions = [_Position() for _ in range(longest)]
        self.iterations = 0
        self.changes = 0

    def add(self, batch_size: int, accepted: tuple[int, ...]) -> bool:
        """One iteration's counts, as in `Telemetry.accepted`. True if a rate was found to have changed."""
        self.iterations += 1
        now, trials = self.iterations, float(batch_size)
        for position, hits in zip(self.positions, accepted, strict=False):
            if trials <= 0:
                break
            position.seen = now
            t, h = position.trials, position.hits
            t[0] += trials - t[0] / FAST
            h[0] += hits - h[0] / FAST
            t[1] += trials - t[1] / MIDDLE
            h[1] += hits - h[1] / MIDDLE
            t[2] += trials - t[2] / SLOW
            h[2] += hits - h[2] / SLOW
            trials = float(hits)
        return now % _CHECK_EVERY == 0 and bool(accepted) and self._drifted()

    def rates(self) -> list[tuple[float, float]]:
        """(rate, standard deviation) of each position."""
        found, before = [], _FIRST_RATE
        for position in self.positions:
            trials, hits = position.trials[2], position.hits[2]
            rate = (hits + _PRIOR_TRIALS * before) / (trials + _PRIOR_TRIALS)
            rate = min(0.995, max(0.005, rate))
            age = self.iterations - position.seen
            deviation = math.sqrt(rate * (1 - rate) / (trials + _PRIOR_TRIALS) + _DRIFT * age)
            found.append((rate, min(0.3, deviation)))
            before = rate
        return found

    def _drifted(self) -> bool:
        changed = False
        for position in self.positions:
            trials, hits = position.trials, position.hits
            if position.seen != self.iterations:
                continue
            for window in (1, 0):
                n, slow = trials[window], trials[2]
                # Both must hold enough, and the longest one more than the window itself.
                if n < _ENOUGH_TRIALS or slow < 2 * n:
                    continue
                rate, short = hits[2] / slow, hits[window] / n
                spread = math.sqrt(max(rate * (1 - rate), 0.01) * (1 / n + 1 / slow))
                if abs(short - rate) > _CONTRADICTS * spread:
                    trials[2], hits[2] = n, hits[window]
                    if window == 0:
                        trials[1], hits[1] = n, hits[0]
                    changed = True
                    break
        self.changes += changed
        return changed


def expected_tokens(rates: list[float], gammas: tuple[int, ...]) -> list[float]:
    """Tokens per request of an iteration, for each of ``gammas``, if the positions have ``rates``."""
    sums, product = [1.0], 1.0
    for rate in rates:
        product *= rate
        sums.append(sums[-1] + product)
    return [sums[min(gamma, len(rates))] for gamma in gammas]
