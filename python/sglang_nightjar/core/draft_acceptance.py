"""How many drafts are accepted: one rate per position, learned from every γ and every batch size, alert to drift.

In a chain, draft i is judged only if those before it were accepted, and what was drafted up to i does not depend on γ.
So an iteration of any γ teaches the rates of positions 1 to γ, and tokens per request are 1 + Σ Π rates.

Each position keeps three exponential windows. How much each counts follows from how well it foretold the last dozens of
iterations (experts weighted by exponential loss, Vovk 1990): the longest one while nothing changes, a short one while
the requests of the moment differ from those before. When a short one contradicts the longest one outright, that starts
anew from what the short one has seen.
"""

import math
from dataclasses import dataclass, field

#: Iterations that the windows remember.
WINDOWS = (16.0, 96.0, 2048.0)
_FADES = tuple(1.0 / window for window in WINDOWS)
#: Iterations over which the windows are judged, and how sharply. Requests differ, so errors are larger than a
#: binomial's; half of its log-likelihood is taken.
_JUDGED, _SHARPNESS = 128.0, 0.25
#: Positions that are judged: the others see fewer drafts.
_JUDGED_POSITIONS = 2
#: Standard deviations by which a window must contradict the longest one. Requests differ, so iterations are not
#: independent, and the usual 3 would see drift everywhere.
_CONTRADICTS = 4.0
_ENOUGH_TRIALS = 12.0
#: A position never seen has the rate of the one before it, as if so many trials had said so; the first one this rate.
_PRIOR_TRIALS, _FIRST_RATE = 4.0, 0.6
#: Variance that an iteration without a look adds: after 600 of them anything within 0.15 is possible.
_DRIFT = 0.15**2 / 600
_CHECK_EVERY = 8


@dataclass(slots=True)
class _Position:
    trials: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    hits: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seen: int = 0


class DraftAcceptance:
    """Attributes:
    iterations: iterations told, those of γ=0 included.
    changes: how often a window was found contradicted.
    """

    def __init__(self, longest: int) -> None:
        self.positions = [_Position() for _ in range(longest)]
        self.losses = [0.0, 0.0, 0.0]
        self.iterations = 0
        self.changes = 0

    def add(self, batch_size: int, accepted: tuple[int, ...]) -> bool:
        """One iteration's counts, as in `Telemetry.accepted`. True if a rate was found to have changed."""
        self.iterations += 1
        now, trials = self.iterations, float(batch_size)
        for index, hits in enumerate(accepted):
            if trials <= 0 or index >= len(self.positions):
                break
            position = self.positions[index]
            t, h = position.trials, position.hits
            if index < _JUDGED_POSITIONS and t[2] > 2 * _ENOUGH_TRIALS:
                self._judge(t, h, trials, hits)
            position.seen = now
            # Written out, as this is most of what a policy does in an iteration.
            t[0] += trials - t[0] * _FADES[0]
            t[1] += trials - t[1] * _FADES[1]
            t[2] += trials - t[2] * _FADES[2]
            h[0] += hits - h[0] * _FADES[0]
            h[1] += hits - h[1] * _FADES[1]
            h[2] += hits - h[2] * _FADES[2]
            trials = float(hits)
        return now % _CHECK_EVERY == 0 and self.check()

    def _judge(self, t: list[float], h: list[float], trials: float, hits: int) -> None:
        slow = h[2] / t[2]
        losses = self.losses
        for window in range(3):
            rate = (h[window] + _PRIOR_TRIALS * slow) / (t[window] + _PRIOR_TRIALS)
            rate = 0.02 if rate < 0.02 else 0.98 if rate > 0.98 else rate
            error = hits - trials * rate
            losses[window] += error * error / (trials * rate * (1.0 - rate)) - losses[window] / _JUDGED

    def weights(self) -> list[float]:
        """How much each window counts; they sum to 1."""
        least = min(self.losses)
        found = [math.exp(-_SHARPNESS * min(200.0, loss - least)) for loss in self.losses]
        total = sum(found)
        return [weight / total for weight in found]

    def rates(self) -> list[tuple[float, float]]:
        """(rate, standard deviation) of each position."""
        found, before = [], _FIRST_RATE
        weights = self.weights()
        for position in self.positions:
            t, h = position.trials, position.hits
            slow = (h[2] + _PRIOR_TRIALS * before) / (t[2] + _PRIOR_TRIALS)
            rate, trials = 0.0, 0.0
            for weight, n, hits in zip(weights, t, h, strict=True):
                rate += weight * (hits + _PRIOR_TRIALS * slow) / (n + _PRIOR_TRIALS)
                trials += weight * n
            rate = min(0.995, max(0.005, rate))
            age = self.iterations - position.seen
            deviation = math.sqrt(rate * (1 - rate) / (trials + _PRIOR_TRIALS) + _DRIFT * age)
            found.append((rate, min(0.3, deviation)))
            before = rate
        return found

    def check(self) -> bool:
        """Look whether a short window contradicts the longest one; if so that starts anew, and the answer is True."""
        changed = False
        for position in self.positions:
            trials, hits = position.trials, position.hits
            if self.iterations - position.seen >= _CHECK_EVERY:
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
