"""``nightjar``: the planner of Nightjar (arXiv 2512.22420), a contextual bandit on latency per token.

Context: the batch size, in buckets. Arms: the candidates, 0 being no drafting. Blocks, bins, exploration and the cost
of switching on: `sglang_nightjar.core.bin_greedy`.

Departs from the paper, where a serving system with plans sent ahead needs an answer that the paper leaves open:
- A bucket first gives every likely arm one bin, and bins are shorter where batches are larger: see
  `core.bin_greedy`, which says why.
- A plan covers every batch size. In a bucket that is not visited now, it holds the best arm, with the cost of switching
  from the present γ; in one that never was, the best arm of the nearest bucket that was, else the start γ.
- The loss of a cell is its mean time over its mean tokens; old iterations fade, outliers don't count (`Cell`).
- Iterations that a prefill shared fill bins but not cells: they say little about γ.
- Cells and the count of bins are shared by schedulers with the same models and hardware (``pool: false``: not), so many
  explore no more than one would; each draws its own arms.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Any

from sglang_nightjar.core import gammas
from sglang_nightjar.core.bin_greedy import BUCKETS, Bin, Bucket, Cell, bin_length, likely, next_bin, switch_cost
from sglang_nightjar.core.messages import LONGEST_ITERATION_NS, Hello, Telemetry
from sglang_nightjar.core.offload_rule import OffloadRule
from sglang_nightjar.core.policy import Decision, Policy

_Key = str | tuple[str, str, str, int]
_MAX_POOLS = 64


@dataclass(frozen=True)
class NightjarParams:
    """Attributes:
    bin_iterations: length of a bin at one request (`bin_length`).
    memory: iterations over which what a cell has seen fades.
    switch_cost_ms: C_switch where the scheduler reports no table.
    pool: schedulers with the same models and hardware share what they learn.
    watermark: part of the KV cache; with less of it free, at γ=0, the draft gives its memory up. 0: only for a queue.
    persistence_s: seconds that this must last, and what ends it.
    """

    bin_iterations: int = field(default=8, metadata={"min": 1, "max": 100_000})
    memory: int = field(default=4096, metadata={"min": 2, "max": 10**9})
    switch_cost_ms: float = field(default=0.0, metadata={"min": 0.0, "max": 1e6})
    pool: bool = True
    watermark: float = field(default=0.1, metadata={"min": 0.0, "max": 0.45})
    persistence_s: float = field(default=2.0, metadata={"min": 0.0, "max": 3600.0})


class _Scheduler:
    """One scheduler: its bins, its random numbers, and what it did last."""

    def __init__(self, hello: Hello, key: _Key, pool: list[Bucket], random: Random, rule: OffloadRule) -> None:
        self.hello, self.key, self.pool, self.random, self.rule = hello, key, pool, random, rule
        self.bins: list[Bin | None] = [None] * len(BUCKETS)
        self.drafting = hello.start_gamma > 0
        self.lag = 0
        self.bucket = 0


class Nightjar(Policy):
    """See the module."""

    name = "nightjar"
    Params = NightjarParams

    def __init__(self, params: Any = None, seed: int = 0) -> None:
        super().__init__(params, seed)
        self.pools: dict[_Key, list[Bucket]] = {}
        self.schedulers: dict[str, _Scheduler] = {}
        self.joined = 0

    def hello(self, hello: Hello) -> Decision:
        known = self.schedulers.get(hello.sender)
        if known is not None and known.hello.candidates == hello.candidates and known.hello.pool == hello.pool:
            known.hello = hello
        else:
            key: _Key = hello.pool if self.params.pool else hello.sender
            # The order of joining, not the id: the same load replayed has other ids.
            random = Random(f"{self.seed}/{self.joined}")
            self.joined += 1
            # Other candidates are no reason for the draft to come back.
            rule = known.rule if known else OffloadRule(hello, self.params.watermark, self.params.persistence_s)
            self.schedulers[hello.sender] = _Scheduler(hello, key, self._pool(key), random, rule)
        return self._decision(self.schedulers[hello.sender], "joined")

    def telemetry(self, sender: str, record: Telemetry) -> Decision | None:
        scheduler = self.schedulers.get(sender)
        gamma = record.gamma
        if scheduler is None or not record.batch_size >= 1 or gamma not in scheduler.hello.candidates:
            return None
        index = gammas.bucket_of(BUCKETS, record.batch_size)
        bucket = scheduler.pool[index]
        # Coming back to drafts is charged by its own rule, so the iteration that caught up must not be charged again.
        returns = gamma > 0 and not scheduler.drafting and scheduler.lag > 0
        # Comparisons written so that a NaN fails them.
        if (
            not returns
            and record.prefill_tokens == 0
            and 0 < record.iteration_ns <= LONGEST_ITERATION_NS
            and self._believable(record)
        ):
            bucket.cells.setdefault(gamma, Cell()).add(record.iteration_ns, record.committed, self.params.memory)
        was_drafting = scheduler.drafting
        scheduler.drafting, scheduler.lag, scheduler.bucket = gamma > 0, record.lag_max, index
        current = scheduler.bins[index]
        # Exploring is no wish for drafts: what else would be done counts.
        wanted = bucket.best(scheduler.hello.candidates, False, self._switch_ns(scheduler, BUCKETS[index]))
        if scheduler.rule.note(record, bool(wanted)):
            return self._decision(scheduler, scheduler.rule.reason)
        length = bin_length(self.params.bin_iterations, BUCKETS[index])
        if current is not None and not current.step(gamma, length):
            # What other buckets should do depends on whether the draft is on.
            if was_drafting != scheduler.drafting and self._switch_ns(scheduler, 1):
                return self._decision(scheduler, f"drafting {'on' if scheduler.drafting else 'off'}")
            return None
        return self._open_bin(scheduler, index, current)

    def goodbye(self, sender: str) -> None:
        scheduler = self.schedulers.pop(sender, None)
        if scheduler is not None and not self.params.pool:
            self.pools.pop(scheduler.key, None)

    def estimates(self) -> dict[str, dict[str, dict[str, float]]]:
        """ns per token, by pool, lower end of the bucket, and γ."""
        return {
            (key if isinstance(key, str) else " ".join(map(str, key))): {
                str(start): {str(gamma): round(cell.loss) for gamma, cell in sorted(bucket.cells.items())}
                for start, bucket in zip(BUCKETS, pool, strict=True)
                if bucket.cells
            }
            for key, pool in self.pools.items()
        }

    @staticmethod
    def _believable(record: Telemetry) -> bool:
        return 0 < record.committed <= record.batch_size * (record.gamma + 1)

    def _open_bin(self, scheduler: _Scheduler, index: int, ended: Bin | None) -> Decision | None:
        bucket = scheduler.pool[index]
        bucket.bins += ended is not None
        arms = scheduler.hello.candidates
        first = likely(scheduler.pool, index, arms)
        switch_ns = self._switch_ns(scheduler, BUCKETS[index])
        opened = next_bin(bucket, arms, scheduler.drafting, switch_ns, scheduler.random, first)
        scheduler.bins[index] = opened
        if ended is not None and ended.arm == opened.arm:
            return None
        return self._decision(scheduler, self._why(bucket, index, ended, opened))

    def _why(self, bucket: Bucket, index: int, ended: Bin | None, opened: Bin) -> str:
        last = BUCKETS[index + 1] - 1 if index + 1 < len(BUCKETS) else None
        first = BUCKETS[index]
        where = f"batch {first}" if first == last else f"batch {first}-{last}" if last else f"batch {first}+"
        change = f"{where}: {opened.arm if ended is None else f'{ended.arm} -> {opened.arm}'}"
        if opened.explores:
            return f"{change}, explores (bin {bucket.turn} of its block)"
        new = bucket.cells.get(opened.arm)
        old = bucket.cells.get(ended.arm) if ended is not None else None
        text = f"{change}, {new.loss / 1e6:.3g} ms/token" if new is not None else change
        return f"{text} against {old.loss / 1e6:.3g}" if old is not None else text

    def _decision(self, scheduler: _Scheduler, reason: str) -> Decision:
        """γ of each bucket as of now: the locked arm where the scheduler is, or explores; the best one elsewhere."""
        best = self._best_arms(scheduler)
        visited = [index for index, arm in enumerate(best) if arm is not None]
        planned = []
        for index, current in enumerate(scheduler.bins):
            if current is not None and (index == scheduler.bucket or current.explores):
                arm: int | None = current.arm
            elif best[index] is not None or not visited:
                arm = best[index]
            else:
                arm = best[min(visited, key=lambda other, index=index: abs(other - index))]  # type: ignore[misc]
            planned.append(scheduler.hello.start_gamma if arm is None else arm)
        return Decision(gammas.from_starts(BUCKETS, planned), reason, scheduler.rule.residency)

    def _best_arms(self, scheduler: _Scheduler) -> list[int | None]:
        """The best arm of each bucket, None where nothing was tried."""
        arms, drafting = scheduler.hello.candidates, scheduler.drafting
        return [
            bucket.best(arms, drafting, self._switch_ns(scheduler, start)) if bucket.cells else None
            for start, bucket in zip(BUCKETS, scheduler.pool, strict=True)
        ]

    def _switch_ns(self, scheduler: _Scheduler, batch_size: int) -> float:
        table = scheduler.hello.switch_costs
        return switch_cost(table, scheduler.lag, batch_size) if table else self.params.switch_cost_ms * 1e6

    def _pool(self, key: _Key) -> list[Bucket]:
        if key not in self.pools:
            if len(self.pools) >= _MAX_POOLS:
                used = {scheduler.key for scheduler in self.schedulers.values()}
                self.pools.pop(next((old for old in self.pools if old not in used), next(iter(self.pools))))
            self.pools[key] = [Bucket() for _ in BUCKETS]
        return self.pools[key]
