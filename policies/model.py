"""``model``: one latency model and one acceptance model for all batch sizes, and a bounded share of exploration.

Ours, and the default. What it learns in one cell (a batch size and a γ) serves all: `core.latency_model` and
`core.draft_acceptance` give time and tokens of every cell with their error bars, `core.objective` what that is worth.
From there:

- It takes the γ of the largest expected worth, and stays with the present one where they differ by less than `MARGIN`.
- It explores where a γ may be better than the best one looks, the one first whose chance costs least, for a few
  iterations, at the batch size at hand (`core.exploration`). ``explore`` bounds the share of iterations; nothing is
  explored while the objective is missed, while requests are being retracted, or while KV is short.
- The draft comes back when what was forgone without it has come to what catching up costs, and at once at batch sizes
  where a few iterations pay for it (`core.draft_return`).
- Drafts that are too unlikely to pay are left out of their verification, where the scheduler can (``trim``); what that
  costs of the tokens, and saves of the time, is learned by cell (`core.kept_share`).
- Under KV pressure γ is held so low that an iteration's drafts fit, and where γ is 0, for that or any other reason, the
  draft gives its memory up (`core.offload_rule`).

Schedulers with the same models, hardware and SGLang version share what they learn, and a saved state is theirs, too.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from sglang_nightjar.core import gammas
from sglang_nightjar.core.arrival_rate import ArrivalRate
from sglang_nightjar.core.draft_return import DraftReturn
from sglang_nightjar.core.exploration import Exploration
from sglang_nightjar.core.latency_model import SIZES, bucket
from sglang_nightjar.core.messages import MAX_BATCH, Arrivals, Hello, Telemetry
from sglang_nightjar.core.objective import Objective
from sglang_nightjar.core.offload_rule import DEVICE, OffloadRule
from sglang_nightjar.core.policy import Decision, Policy
from sglang_nightjar.core.speculation import MARGIN, Speculation

logger = logging.getLogger(__name__)

#: Schedulers that have it in common are alike: models, hardware, SGLang's version.
_Kind = tuple[str, ...]
#: A pool's: a kind and its candidates.
_Key = tuple[_Kind, tuple[int, ...]]
_MAX_POOLS = 16
_STATE_VERSION = 3
#: Own iterations between two plans of a scheduler that learns with others, at least.
_LOOK_EVERY = 8


@dataclass(frozen=True)
class ModelParams:
    """Attributes:
    objective: ``throughput``, ``latency``, or ``slo``, which needs a bound.
    ttft_ms, tpot_ms: bounds for ``slo``.
    explore: share of iterations that may try a γ which is not thought the best.
    pool: schedulers of the same kind share what they learn, and a state is saved; else each learns alone, and anew.
    trim: as `static` has it.
    watermark, persistence_s: when the draft gives its memory up, and has it back, as `nightjar` has them.
    """

    objective: str = field(default="throughput", metadata={"choices": ("throughput", "latency", "slo")})
    ttft_ms: float | None = field(default=None, metadata={"min": 0.001, "max": 1e9})
    tpot_ms: float | None = field(default=None, metadata={"min": 0.001, "max": 1e9})
    explore: float = field(default=0.02, metadata={"min": 0.0, "max": 0.5})
    pool: bool = True
    trim: bool = True
    watermark: float = field(default=0.1, metadata={"min": 0.0, "max": 0.45})
    persistence_s: float = field(default=2.0, metadata={"min": 0.0, "max": 3600.0})

    def __post_init__(self) -> None:
        if (self.objective == "slo") != (self.ttft_ms is not None or self.tpot_ms is not None):
            raise ValueError(
                f"objective: {self.objective!r} with ttft_ms {self.ttft_ms!r} and tpot_ms {self.tpot_ms!r}; "
                "slo needs at least one bound, and nothing else takes any"
            )


class _Scheduler:
    """One scheduler: what it was told, and what it does."""

    def __init__(self, hello: Hello, key: _Key, pool: Speculation, params: ModelParams) -> None:
        self.hello, self.key, self.pool = hello, key, pool
        self.rule = OffloadRule(hello, params.watermark, params.persistence_s)
        self.draft, self.exploration = DraftReturn(pool), Exploration(params.explore)
        self.plan = [hello.candidates.index(hello.start_gamma)] * len(SIZES)
        self.sent: gammas.Ranges = gammas.constant(hello.start_gamma)
        self.version = -1
        self.since_plan = 0
        self.bucket = 0
        self.retractions = self.calm_until = 0
        self.waits_since_ns = 0
        self.tpot_ns = 0.0
        self.free_kv: int | None = None
        self.arrivals = ArrivalRate()


class Model(Policy):
    """See the module."""

    name = "model"
    Params = ModelParams

    def __init__(self, params: Any = None, seed: int = 0) -> None:
        super().__init__(params, seed)
        p = self.params
        self.objective = Objective(p.objective, 1e6 * (p.ttft_ms or 0.0), 1e6 * (p.tpot_ms or 0.0))
        self.pools: dict[_Key, Speculation] = {}
        self.schedulers: dict[str, _Scheduler] = {}
        #: Of pools that nobody has asked for since the state was loaded.
        self.saved: dict[_Kind, dict[str, Any]] = {}

    def hello(self, hello: Hello) -> Decision:
        known, key = self.schedulers.pop(hello.sender, None), self._key(hello)
        scheduler = known
        if scheduler is None or scheduler.key != key:
            scheduler = _Scheduler(hello, key, self._pool(key), self.params)
        if known is not None:
            # Other candidates are no reason for the draft to come back.
            scheduler.hello, scheduler.rule = hello, known.rule
            self._count_sharers(known.pool)
        self.schedulers[hello.sender] = scheduler
        self._count_sharers(scheduler.pool)
        if scheduler.pool.version:
            self._replan(scheduler)
        scheduler.sent = self._ranges(scheduler)
        return self._decision(scheduler, "joined")

    def telemetry(self, sender: str, record: Telemetry) -> Decision | None:
        scheduler = self.schedulers.get(sender)
        size = record.batch_size
        # Comparisons written so that a NaN fails them.
        if scheduler is None or type(size) is not int or not 1 <= size <= MAX_BATCH:
            return None
        if type(record.gamma) is not int or record.gamma not in scheduler.hello.candidates:
            return None
        pool, index = scheduler.pool, bucket(size)
        taught = pool.learn(record)
        moved = index != scheduler.bucket
        scheduler.bucket = index
        scheduler.exploration.earn()
        self._watch(scheduler, record)
        changed = scheduler.draft.follow(record, index, scheduler.hello)
        if scheduler.exploration.follow(scheduler.hello.candidates.index(record.gamma), index, taught):
            pool.fit_soon()
            changed = True
        if scheduler.rule.note(record, self._wants_drafts(scheduler, index)):
            scheduler.sent = self._ranges(scheduler)
            return self._decision(scheduler, scheduler.rule.reason)
        scheduler.since_plan += 1
        # Of many that learn together, each looks as often as one alone would, whatever the others find.
        stale = scheduler.version != pool.version and scheduler.since_plan >= min(_LOOK_EVERY, pool.sharers)
        if not (changed or moved or stale):
            return None
        if changed or stale:
            self._replan(scheduler)
        if scheduler.exploration.trial is None and self._may_explore(scheduler, record):
            price = scheduler.draft.cost_ns(size, scheduler.hello)
            scheduler.exploration.consider(pool, index, scheduler.plan[index], record, price)
        return self._tell(scheduler, record.gamma, index)

    def arrivals(self, arrivals: Arrivals) -> None:
        if self.objective.kind != "latency" or not 0 < arrivals.requests < 1 << 32:
            return
        for scheduler in self.schedulers.values():
            if scheduler.hello.server == arrivals.server:
                scheduler.arrivals.add(arrivals.requests, arrivals.at_ns)

    def goodbye(self, sender: str) -> None:
        scheduler = self.schedulers.pop(sender, None)
        if scheduler is not None:
            self._count_sharers(scheduler.pool)
        if scheduler is not None and not self.params.pool:
            self.pools.pop(scheduler.key, None)

    def estimates(self) -> dict[str, dict[str, dict[str, float]]]:
        """ns per token, by pool, batch size that was seen, and γ; as expected, also for γ that were not tried."""
        shown: dict[str, dict[str, dict[str, float]]] = {}
        for (kind, _), pool in self.pools.items():
            seen = sorted({index for index, _ in pool.latency.cells})
            shown[" ".join(kind)] = {
                str(SIZES[index]): {
                    str(gamma): round(1.0 / value)
                    for gamma, value in zip(pool.gammas, pool.mean[index], strict=True)
                    if value > 0
                }
                for index in seen
            }
        return shown

    def save(self) -> dict[str, Any]:
        if not self.params.pool:
            return {}
        pools = {**self.saved, **{kind: pool.state() for (kind, _), pool in self.pools.items() if pool.version}}
        return {
            "version": _STATE_VERSION,
            "pools": [{"key": list(kind), "state": state} for kind, state in pools.items()],
        }

    def load(self, state: dict[str, Any]) -> None:
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"a state of version {state.get('version')!r}; this is version {_STATE_VERSION}: it starts anew"
            )
        try:
            found = {tuple(map(str, pool["key"])): dict(pool["state"]) for pool in state["pools"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a state that can't be read: {error!r}") from None
        self.saved = dict(list(found.items())[:_MAX_POOLS])

    # Telemetry.

    def _watch(self, scheduler: _Scheduler, record: Telemetry) -> None:
        """Retractions, waiting, KV and latency: may it explore, and how many drafts fit?"""
        if record.retractions != scheduler.retractions:
            scheduler.retractions = record.retractions
            scheduler.calm_until = scheduler.pool.iterations + 64
        if not record.queue_length:
            scheduler.waits_since_ns = 0
        elif not scheduler.waits_since_ns:
            scheduler.waits_since_ns = record.at_ns
        if record.kv_capacity > 0:
            scheduler.free_kv = record.kv_capacity - record.kv_used
        if self.objective.kind == "latency":
            # A server's DP ranks share its requests, and a pool's schedulers its rate.
            own, pool = scheduler.arrivals.per_ns(record.at_ns) / scheduler.hello.dp_size, scheduler.pool
            pool.arrivals_per_ns += (own - pool.arrivals_per_ns) / pool.sharers
        if self.objective.tpot_ns and record.committed >= record.batch_size and record.iteration_ns < 10**12:
            per_token = record.iteration_ns * record.batch_size / record.committed
            scheduler.tpot_ns += 0.05 * (per_token - scheduler.tpot_ns)

    def _may_explore(self, scheduler: _Scheduler, record: Telemetry) -> bool:
        if not scheduler.exploration.can_afford_one() or scheduler.rule.residency != DEVICE:
            return False
        if scheduler.pool.iterations < scheduler.calm_until:
            return False
        objective = self.objective
        if objective.tpot_ns and scheduler.tpot_ns > objective.tpot_ns:
            return False
        if (
            objective.ttft_ns
            and scheduler.waits_since_ns
            and record.at_ns - scheduler.waits_since_ns > objective.ttft_ns
        ):
            return False
        free = scheduler.free_kv
        return free is None or free > 4 * record.batch_size * (scheduler.hello.candidates[-1] + 1)

    # Decisions.

    def _replan(self, scheduler: _Scheduler) -> None:
        """The best γ of every bucket."""
        pool, plan = scheduler.pool, scheduler.plan
        scheduler.version, scheduler.since_plan = pool.version, 0
        for index, (scores, best) in enumerate(zip(pool.mean, pool.best, strict=True)):
            if scores[plan[index]] < scores[best] * (1.0 - MARGIN):
                plan[index] = best

    def _ranges(self, scheduler: _Scheduler) -> gammas.Ranges:
        candidates, columns = scheduler.hello.candidates, scheduler.plan
        if not scheduler.draft.is_due:
            pays_soon, hello = scheduler.draft.pays_soon, scheduler.hello
            columns = [column if pays_soon(index, hello) else 0 for index, column in enumerate(columns)]
        trial = scheduler.exploration.trial
        if trial is not None:
            columns = [trial.column if trial.covers(index) else column for index, column in enumerate(columns)]
        most = self._most_that_fits(scheduler)
        if most < len(candidates) - 1:
            columns = [
                min(column, most) if index >= scheduler.bucket else column for index, column in enumerate(columns)
            ]
        return gammas.from_starts(SIZES, [candidates[column] for column in columns])

    @staticmethod
    def _most_that_fits(scheduler: _Scheduler) -> int:
        """Column of the largest γ whose drafts have room: those that don't would cost a running request its place."""
        candidates, free = scheduler.hello.candidates, scheduler.free_kv
        size = SIZES[scheduler.bucket]
        if free is None or free >= 2 * size * (candidates[-1] + 1):
            return len(candidates) - 1
        return max((column for column, gamma in enumerate(candidates) if 2 * size * (gamma + 1) <= free), default=0)

    def _wants_drafts(self, scheduler: _Scheduler, index: int) -> bool:
        """γ is above 0 for the batch at hand; trials are no wish for drafts."""
        candidates = scheduler.hello.candidates
        if not scheduler.draft.is_due:
            return False
        return candidates[min(scheduler.plan[index], self._most_that_fits(scheduler))] > 0

    def _tell(self, scheduler: _Scheduler, ran: int, index: int) -> Decision | None:
        ranges = self._ranges(scheduler)
        if ranges == scheduler.sent:
            return None
        scheduler.sent = ranges
        return self._decision(scheduler, self._why(scheduler, ran, index))

    def _decision(self, scheduler: _Scheduler, reason: str) -> Decision:
        return Decision(scheduler.sent, reason, scheduler.rule.residency, self.params.trim)

    def _why(self, scheduler: _Scheduler, ran: int, index: int) -> str:
        pool, candidates = scheduler.pool, scheduler.hello.candidates
        where = f"batch {SIZES[index]}"
        trial = scheduler.exploration.trial
        if trial is not None:
            return f"{where}: tries {candidates[trial.column]} for {trial.left} iterations"
        if not scheduler.draft.is_due:
            forgone_ms = scheduler.draft.forgone_ns / 1e6
            return f"{where}: without the draft, {forgone_ms:.3g} ms forgone so far of what its return costs"
        wanted = scheduler.plan[index]
        scores = pool.mean[index]
        if scores[wanted] <= 0 or scores[candidates.index(ran)] <= 0:
            return f"{where}: {candidates[wanted]}"
        return (
            f"{where}: {ran} -> {candidates[wanted]}, {1e-6 / scores[wanted]:.3g} ms/token expected against "
            f"{1e-6 / scores[candidates.index(ran)]:.3g}"
        )

    # Pools.

    def _count_sharers(self, pool: Speculation) -> None:
        pool.sharers = max(1, sum(scheduler.pool is pool for scheduler in self.schedulers.values()))

    def _key(self, hello: Hello) -> _Key:
        kind = (hello.target, hello.draft, hello.hardware, str(hello.tp_size), hello.sglang_version)
        return (kind if self.params.pool else (*kind, hello.sender)), hello.candidates

    def _pool(self, key: _Key) -> Speculation:
        """The pool of ``key``. A new one takes over from others of its kind, or else what was saved."""
        if key in self.pools:
            return self.pools[key]
        kind, candidates = key
        used = {scheduler.key for scheduler in self.schedulers.values()}
        state = self.saved.pop(kind, None)
        for other in [other for other in self.pools if other[0] == kind]:
            state = self.pools[other].state() if self.pools[other].version else state
            if other not in used:
                del self.pools[other]
        if len(self.pools) >= _MAX_POOLS:
            self.pools.pop(next((old for old in self.pools if old not in used), next(iter(self.pools))))
        made = self.pools[key] = Speculation(candidates, self.objective)
        if state is not None:
            try:
                made.restore(state)
            except (ValueError, LookupError, TypeError) as error:
                logger.warning("the saved state of %s can't be used, it starts anew: %r", " ".join(kind), error)
        return made
