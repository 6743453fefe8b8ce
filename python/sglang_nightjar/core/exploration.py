"""A bounded share of exploration: short trials of a γ that may be better than the best one looks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sglang_nightjar.core.messages import Telemetry
from sglang_nightjar.core.speculation import Speculation

#: A γ that may be better by less is not worth a trial.
_WORTH_A_TRY = 0.01
#: Iterations that may be saved up, which is also what a new scheduler starts with.
_MOST_CREDIT = 32.0
#: Judged requests that a trial should give, its shortest length, and its longest one for noise.
_REQUESTS, _SHORTEST, _LONGEST = 24, 2, 8


@dataclass(slots=True)
class Trial:
    """Of ``column``, an index of γ, at the buckets around ``bucket``: iterations still to run, and to wait at most."""

    column: int
    bucket: int
    left: int
    patience: int

    def covers(self, bucket: int) -> bool:
        return abs(bucket - self.bucket) <= 1


class Exploration:
    """One scheduler's.

    Attributes:
        trial: what is tried now, or None.
        credit: iterations that may be spent on trials; ``share`` of every iteration is added.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self.credit = _MOST_CREDIT
        self.trial: Trial | None = None

    def earn(self) -> None:
        """An iteration."""
        self.credit = min(_MOST_CREDIT, self.credit + self._share)

    def follow(self, column: int, bucket: int, taught: bool) -> bool:
        """An iteration ran γ number ``column``, and ``taught`` something or not. True if the trial ended with it."""
        trial = self.trial
        if trial is None:
            return False
        trial.patience -= 1
        if trial.column == column:
            trial.left -= taught
            self.credit -= 1.0
        if trial.left > 0 and trial.patience > 0 and trial.covers(bucket):
            return False
        self.trial = None
        return True

    def can_afford_one(self) -> bool:
        return self._share > 0 and self.credit >= _SHORTEST

    def consider(self, pool: Speculation, bucket: int, planned: int, record: Telemetry, return_ns: float) -> None:
        """Begin the trial whose chance costs least, if any is worth it.

        Args:
            bucket: that of the batch at hand.
            planned: index of the γ that it gets otherwise.
            return_ns: what a trial costs before it begins: the return of a draft that was left behind, else 0.
        """
        column = _best_chance(pool, bucket, planned)
        if column is None:
            return
        # The noisier the times, the more of them tell two γ apart.
        noise = pool.latency.noise(bucket, record.gamma)
        readings = min(_LONGEST, math.ceil((noise / 0.03) ** 2))
        length = max(_SHORTEST, readings, math.ceil(_REQUESTS / record.batch_size))
        length = min(length, max(_SHORTEST, int(self.credit)))
        if return_ns > 0:
            price = return_ns / max(1.0, pool.latency.expected_ns(record.batch_size, pool.gammas[0]))
            if price + length > self.credit:
                return
            self.credit -= price
        self.trial = Trial(column, bucket, length, 4 * length + 16)


def _best_chance(pool: Speculation, bucket: int, planned: int) -> int | None:
    """Index of the γ that may gain most for what trying it is expected to lose; None if none may gain enough."""
    scores = pool.mean[bucket]
    best = max(scores)
    chosen, ratio = None, 0.0
    for column, chance in enumerate(pool.optimistic[bucket]):
        gain = chance / best - 1.0 - _WORTH_A_TRY
        if gain > 0 and column != planned:
            loss = 1.0 - scores[column] / best
            if gain / (loss + 0.01) > ratio:
                chosen, ratio = column, gain / (loss + 0.01)
    return chosen
