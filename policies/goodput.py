"""``goodput``: an offline latency profile times online acceptance, as SmartSpec/TurboSpec and DSD do.

Follows Liu et al., TurboSpec (arXiv 2406.14066): time of an iteration is linear in context tokens and in batched
tokens, with coefficients from a profile made beforehand; the acceptance rate α of a token is a moving average; tokens
per request are (1 - α^(γ+1)) / (1 - α); the γ of the largest goodput, γ=0 included, is taken for the whole batch.

Departs: a scheduler without a ``profile`` is profiled when it serves its first requests, ``profile_iterations`` of each
γ, and the fit is then frozen, as the paper's is. Draft steps are a term of their own. As there, nothing is explored: at
γ=0 no acceptance is seen, and the last one stands; ``forget`` lets it return to ``start_acceptance``.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sglang_nightjar.core import gammas
from sglang_nightjar.core.bin_greedy import BUCKETS
from sglang_nightjar.core.messages import LONGEST_ITERATION_NS, Hello, Telemetry
from sglang_nightjar.core.policy import Decision, Policy

_DECIDE_EVERY = 8


@dataclass(frozen=True)
class GoodputParams:
    """Attributes:
    profile: (batch size, γ, context tokens, ns) rows measured beforehand.
    profile_iterations: without one, iterations of each γ that make one.
    start_acceptance: α before anything was seen.
    smoothing: weight of an iteration in α.
    forget: share of α that an iteration at γ=0 moves towards ``start_acceptance``.
    """

    profile: tuple[tuple[float, ...], ...] = ()
    profile_iterations: int = field(default=8, metadata={"min": 1, "max": 10_000})
    start_acceptance: float = field(default=0.7, metadata={"min": 0.0, "max": 0.99})
    smoothing: float = field(default=0.05, metadata={"min": 0.0001, "max": 1.0})
    forget: float = field(default=0.0, metadata={"min": 0.0, "max": 1.0})

    def __post_init__(self) -> None:
        if any(len(row) != 4 or row[0] < 1 or row[1] < 0 or row[2] < 0 or row[3] <= 0 for row in self.profile):
            raise ValueError("profile: each row must be [batch size, γ, context tokens, ns]")


class _Scheduler:
    """One scheduler: its profile while it is made, and α."""

    def __init__(self, hello: Hello, params: GoodputParams) -> None:
        self.candidates = hello.candidates
        self.rows: list[tuple[float, ...]] = list(params.profile)
        self.fit = _fit(self.rows) if params.profile else None
        self.acceptance = params.start_acceptance
        self.context_per_request = 0.0
        self.profiling, self.left = 0, params.profile_iterations
        self.iterations = 0


class Goodput(Policy):
    """See the module."""

    name = "goodput"
    Params = GoodputParams

    def __init__(self, params: Any = None, seed: int = 0) -> None:
        super().__init__(params, seed)
        self.schedulers: dict[str, _Scheduler] = {}
        self.plans: dict[str, gammas.Ranges] = {}

    def hello(self, hello: Hello) -> Decision:
        known = self.schedulers.get(hello.sender)
        if known is None or known.candidates != hello.candidates:
            known = self.schedulers[hello.sender] = _Scheduler(hello, self.params)
        self.plans[hello.sender] = self._plan(known)
        return Decision(self.plans[hello.sender], "joined")

    def telemetry(self, sender: str, record: Telemetry) -> Decision | None:
        scheduler = self.schedulers.get(sender)
        if scheduler is None or not 1 <= record.batch_size <= 1 << 20 or record.gamma not in scheduler.candidates:
            return None
        if not (0 < record.iteration_ns <= LONGEST_ITERATION_NS and 0 <= record.context_tokens <= 1 << 40):
            return None
        scheduler.iterations += 1
        self._see_acceptance(scheduler, record)
        share = record.context_tokens / record.batch_size
        scheduler.context_per_request += 0.05 * (share - scheduler.context_per_request)
        if scheduler.fit is None:
            if not self._profile(scheduler, record):
                return None
        elif scheduler.iterations % _DECIDE_EVERY:
            return None
        plan = self._plan(scheduler)
        if plan == self.plans[sender]:
            return None
        self.plans[sender] = plan
        reason = "profile" if scheduler.fit is None else f"acceptance {scheduler.acceptance:.3f}"
        return Decision(plan, reason)

    def goodbye(self, sender: str) -> None:
        self.schedulers.pop(sender, None)
        self.plans.pop(sender, None)

    def _see_acceptance(self, scheduler: _Scheduler, record: Telemetry) -> None:
        params = self.params
        if record.gamma == 0:
            scheduler.acceptance += params.forget * (params.start_acceptance - scheduler.acceptance)
            return
        if len(record.accepted) != record.gamma:
            return
        # Of drafts that were judged: those whose predecessors were accepted.
        judged = record.batch_size + sum(record.accepted[:-1])
        hits = sum(record.accepted)
        if 0 <= hits <= judged:
            scheduler.acceptance += params.smoothing * (hits / judged - scheduler.acceptance)

    def _profile(self, scheduler: _Scheduler, record: Telemetry) -> bool:
        """One iteration of the profile; True if the plan may change."""
        if record.prefill_tokens or record.gamma != scheduler.candidates[scheduler.profiling]:
            return False
        scheduler.rows.append(
            (float(record.batch_size), float(record.gamma), float(record.context_tokens), float(record.iteration_ns))
        )
        scheduler.left -= 1
        if scheduler.left > 0:
            return False
        scheduler.profiling += 1
        scheduler.left = self.params.profile_iterations
        if scheduler.profiling == len(scheduler.candidates):
            scheduler.fit = _fit(scheduler.rows)
            scheduler.rows = []
        return True

    def _plan(self, scheduler: _Scheduler) -> gammas.Ranges:
        candidates = scheduler.candidates
        if scheduler.fit is None:
            return gammas.constant(candidates[scheduler.profiling])
        alpha = min(0.99, max(0.0, scheduler.acceptance))
        chosen = []
        for size in BUCKETS:
            context = scheduler.context_per_request * size
            goodputs = [
                size
                * sum(alpha**i for i in range(gamma + 1))
                / max(1.0, float(_row(size, gamma, context) @ scheduler.fit))
                for gamma in candidates
            ]
            chosen.append(candidates[goodputs.index(max(goodputs))])
        return gammas.from_starts(BUCKETS, chosen)


def _row(size: float, gamma: float, context: float) -> np.ndarray:
    return np.array([1.0, context, size * (gamma + 1), gamma])


def _fit(rows: list[tuple[float, ...]]) -> np.ndarray:
    """Fixed ns, and ns per context token, per batched token and per draft step: least squares on relative errors."""
    table = np.array([_row(size, gamma, context) for size, gamma, context, _ in rows])
    ns = np.array([row[3] for row in rows])
    # A little ridge: rows of one batch size can't tell all of them apart.
    scale = np.abs(table).max(0) + 1e-12
    scaled = table / scale / ns[:, None]
    gram = scaled.T @ scaled
    gram += 1e-6 * np.trace(gram) * np.eye(4)
    return np.asarray(np.linalg.solve(gram, scaled.sum(0)) / scale)
