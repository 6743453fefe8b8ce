"""When a draft that was left behind at γ=0 comes back: once what was forgone without it has come to what that costs.

The ski-rental rule (Karlin et al. 1988), never more than twice the cost of knowing the future. The cost of coming back
is measured as it happens; before, it is the scheduler's table's. Where a few iterations pay for it there is nothing to
wait for, and a plan can say so beforehand, by batch size: then nobody has to be asked when the batch shrinks.
"""

from __future__ import annotations

from sglang_nightjar.core.bin_greedy import switch_cost
from sglang_nightjar.core.messages import LONGEST_ITERATION_NS, Hello, Residency, Telemetry
from sglang_nightjar.core.speculation import MARGIN, SIZES, Speculation

#: Iterations that a batch is expected to stay as it is: a tenth of a second, or less.
_SOON = 4


class DraftReturn:
    """One scheduler's.

    Attributes:
        parked: the draft has been left behind.
        forgone_ns: what was forgone meanwhile.
    """

    def __init__(self, pool: Speculation) -> None:
        self._pool = pool
        self.parked = self._decided = False
        self.forgone_ns = 0.0
        self._lag_total, self._lag_each, self._catch_up_ns = 0, 0.0, 0.0

    @property
    def is_due(self) -> bool:
        """Nothing speaks against drafting: the draft is there, or was decided to come back."""
        return not self.parked or self._decided or self._pool.gammas[0] != 0

    def follow(self, record: Telemetry, bucket: int, hello: Hello) -> bool:
        """An iteration of a batch in ``bucket``. True if it changes what is to be done."""
        if record.residency == Residency.RESIDENT and not self.parked:
            return False
        before = self.parked, self._decided
        if record.residency == Residency.RESIDENT:
            self._came_back()
        else:
            self.parked = True
            if record.residency == Residency.CATCHING_UP:
                self._pay(record)
            else:
                self._wait(record, bucket, hello)
        return before != (self.parked, self._decided)

    def cost_ns(self, batch_size: int, hello: Hello) -> float:
        """What the return would cost now with so many requests; 0 if it is there."""
        if not self.parked:
            return 0.0
        known = self._pool.catch_up.expected(self._lag_each * batch_size)
        if known is not None:
            return known
        if hello.switch_costs:
            # A return costs by the position, so what counts is how far requests are behind on average.
            return switch_cost(hello.switch_costs, self._lag_each, batch_size)
        return self._pool.latency.expected_ns(batch_size, self._pool.gammas[0])

    def pays_soon(self, bucket: int, hello: Hello) -> bool:
        """A batch in ``bucket`` needs not wait: the next few iterations without drafts would forgo as much."""
        share = self._share_forgone(bucket)
        if not share:
            return False
        size = SIZES[bucket]
        return _SOON * share * self._pool.latency.expected_ns(size, 0) >= self.cost_ns(size, hello)

    def _came_back(self) -> None:
        if self._catch_up_ns > 0:
            self._pool.catch_up.add(self._lag_total, self._catch_up_ns)
        self.parked = self._decided = False
        self.forgone_ns = self._catch_up_ns = 0.0

    def _pay(self, record: Telemetry) -> None:
        pool, gamma = self._pool, record.gamma
        usual = pool.latency.expected_ns(record.batch_size, gamma) if gamma in pool.gammas else 0.0
        if not record.prefill_tokens and 0 < record.iteration_ns < LONGEST_ITERATION_NS:
            self._catch_up_ns += max(0.0, record.iteration_ns - usual)

    def _wait(self, record: Telemetry, bucket: int, hello: Hello) -> None:
        # A return that was broken off says nothing about the next one.
        self._catch_up_ns = 0.0
        if 0 <= record.lag_total < 1 << 40:
            self._lag_total, self._lag_each = record.lag_total, record.lag_total / record.batch_size
        share = self._share_forgone(bucket)
        if not share:
            self.forgone_ns, self._decided = 0.0, False
        elif not self._decided and 0 < record.iteration_ns < LONGEST_ITERATION_NS:
            self.forgone_ns += record.iteration_ns * share
            cost_ns = self.cost_ns(record.batch_size, hello)
            self._decided = self.forgone_ns >= cost_ns or self.pays_soon(bucket, hello)

    def _share_forgone(self, bucket: int) -> float:
        """Of an iteration without drafts, the share that the best γ would have saved; 0 where none would pay."""
        scores = self._pool.mean[bucket]
        best = max(scores)
        if best <= scores[0] * (1 + MARGIN) or self._pool.gammas[0] != 0:
            return 0.0
        return float(1 - scores[0] / best)
