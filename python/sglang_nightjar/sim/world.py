"""Replicas, the load on them, and one policy for all: the simulation itself."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

import numpy as np

from sglang_nightjar.core.messages import Arrivals
from sglang_nightjar.core.policy import Policy
from sglang_nightjar.sim.engine import Engine
from sglang_nightjar.sim.loads import NEVER, ClosedLoop, LoadSettings, OpenLoop, make
from sglang_nightjar.sim.meter import Meter
from sglang_nightjar.sim.setup import Setup

#: As the agents of real servers report arrivals.
_ARRIVALS_NS = 50_000_000


@dataclass
class Result:
    """What a run gave.

    Attributes:
        seconds: virtual time.
        requests, tokens, refused, retractions, offloads, switches, iterations: counts of all replicas.
        rate: tokens per second.
        within: tokens of finished requests that met the bounds on TTFT and TPOT; all of theirs without any.
        ttft_ms, tpot_ms, latency_ms: mean, p50, p95, p99 of finished requests; TPOT only of those of several tokens.
        shares, best_shares: share of iterations by γ, as it ran and as the oracle wanted it.
        batch_size: mean of decode iterations.
        efficiency: expected tokens over those of the oracle's γ in the same time and batches.
        history: (iterations, expected tokens, oracle's) of the first replica.
    """

    seconds: float
    requests: int
    tokens: int
    rate: float
    within: int
    efficiency: float
    iterations: int
    batch_size: float
    switches: int
    retractions: int
    refused: int
    offloads: int
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    latency_ms: dict[str, float]
    shares: dict[int, float]
    best_shares: dict[int, float]
    history: list[tuple[int, float, float]] = field(default_factory=list)


def simulate(
    setup: Setup,
    load: LoadSettings,
    policy: Policy,
    seed: int = 0,
    replicas: int = 1,
    drain: bool = False,
    iterations: int | None = None,
    mark: int = 0,
    oracle: bool = False,
    source: OpenLoop | ClosedLoop | None = None,
    ttft_ms: float = math.inf,
    tpot_ms: float = math.inf,
) -> Result:
    """Run ``load`` on ``replicas`` of ``setup`` under ``policy``.

    It ends with the load; ``drain``: when all requests have their answers; or after so many decode ``iterations``.
    Requests go to the replica with the fewest. The load does not depend on ``policy``, but for a closed loop's pace.
    ``oracle``: the best γ of each moment instead of the policy's. ``source``: these requests instead of those that
    ``load`` would make; it then only says how long the load is. ``ttft_ms``, ``tpot_ms``: bounds for `Result.within`.
    """
    source = source or make(load, setup.acceptance.shares(), seed)
    engines = [Engine(setup, index, policy, seed, source.finished, oracle) for index in range(replicas)]
    engines[0].meter.mark = mark
    end_ns = NEVER if drain else load.duration_ns
    _run(engines, source, policy, end_ns, NEVER if iterations is None else iterations)
    now = max(engine.now for engine in engines)
    end = now if drain or iterations else min(now, end_ns)
    return _sum_up([engine.meter for engine in engines], end, ttft_ms, tpot_ms)


def _run(engines: list[Engine], source: OpenLoop | ClosedLoop, policy: Policy, end_ns: int, most: int) -> None:
    reporter = _Reporter(policy) if type(policy).arrivals is not Policy.arrivals else None
    router = _Router(engines)
    heap: list[tuple[int, int]] = []
    total = 0
    while True:
        arrival = source.next_at
        if heap and heap[0][0] < arrival:
            now, index = heap[0]
            if now >= end_ns or total >= most:
                return
            engine = engines[index]
            meter, load = engine.meter, engine.load
            before = meter.iterations
            engine.step()
            total += meter.iterations - before
            if engine.load != load:
                router.changed(index)
            if engine.busy:
                heapq.heapreplace(heap, (engine.now, index))
            else:
                heapq.heappop(heap)
            continue
        if arrival >= end_ns:
            # What runs ends later than that, too.
            return
        request = source.pop()
        index = router.least()
        engine = engines[index]
        if reporter is not None:
            reporter.note(engine.hello.server, arrival, request.prompt)
        idle = not engine.busy
        engine.add(request, arrival)
        router.changed(index)
        if idle:
            heapq.heappush(heap, (engine.now, index))


class _Router:
    """Finds the replica with the fewest requests, the first of several, without asking all of them."""

    def __init__(self, engines: list[Engine]) -> None:
        self._engines = engines
        self._heap: list[tuple[int, int]] = []
        self._rebuild()

    def _rebuild(self) -> None:
        self._heap = [(engine.load, index) for index, engine in enumerate(self._engines)]
        heapq.heapify(self._heap)

    def changed(self, index: int) -> None:
        """A replica has more or fewer requests than before. Its older entries are dropped when they are met."""
        heapq.heappush(self._heap, (self._engines[index].load, index))
        if len(self._heap) > 16 * len(self._engines) + 64:
            self._rebuild()

    def least(self) -> int:
        """Index of the replica."""
        heap, engines = self._heap, self._engines
        while engines[heap[0][1]].load != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][1]


class _Reporter:
    """Arrivals, per server and interval, as tokenizer processes report them."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._open: dict[str, list[int]] = {}
        self._seq = 0

    def note(self, server: str, at_ns: int, prompt_tokens: int) -> None:
        """A request arrived."""
        current = self._open.get(server)
        if current is not None and at_ns - current[0] >= _ARRIVALS_NS:
            start, requests, tokens = self._open.pop(server)
            self._seq += 1
            self._policy.arrivals(
                Arrivals(
                    f"{server}/tokenizer0/0", self._seq, server, start + _ARRIVALS_NS, _ARRIVALS_NS, requests, tokens
                )
            )
            current = None
        if current is None:
            current = self._open[server] = [at_ns, 0, 0]
        current[1] += 1
        current[2] += prompt_tokens


def _sum_up(meters: list[Meter], end_ns: int, ttft_ms: float, tpot_ms: float) -> Result:
    for meter in meters:
        meter.settle()
    tokens, iterations = sum(m.tokens for m in meters), sum(m.iterations for m in meters)
    ttft, latency, outputs = (
        np.concatenate([np.frombuffer(getattr(m, name), np.int64) for m in meters])
        for name in ("ttft_ns", "latency_ns", "outputs")
    )
    several = outputs > 1
    tpot = (latency - ttft)[several] / (outputs[several] - 1)
    seconds = end_ns / 1e9
    met = (ttft <= 1e6 * ttft_ms) & (latency - ttft <= 1e6 * tpot_ms * np.maximum(0, outputs - 1))

    def shares(name: str) -> dict[int, float]:
        gammas = sorted({gamma for m in meters for gamma in getattr(m, name)})
        return {gamma: sum(getattr(m, name)[gamma] for m in meters) / max(1, iterations) for gamma in gammas}

    could = sum(m.could for m in meters)
    return Result(
        seconds=seconds, requests=len(latency), tokens=tokens, rate=tokens / seconds if seconds else 0.0,
        within=int(outputs[met].sum()),
        efficiency=sum(m.got for m in meters) / could if could else 1.0, iterations=iterations,
        batch_size=sum(m.batch_total for m in meters) / max(1, iterations), switches=sum(m.switches for m in meters),
        retractions=sum(m.retractions for m in meters), refused=sum(m.refused for m in meters),
        offloads=sum(m.offloads for m in meters), ttft_ms=_spread(ttft), tpot_ms=_spread(tpot),
        latency_ms=_spread(latency), shares=shares("shares"), best_shares=shares("best_shares"),
        history=meters[0].history,
    )  # fmt: skip


def _spread(ns: np.ndarray) -> dict[str, float]:
    if not len(ns):
        return {}
    points = np.percentile(ns, (50, 95, 99)) / 1e6
    return {"mean": round(float(ns.mean()) / 1e6, 3)} | {
        name: round(float(value), 3) for name, value in zip(("p50", "p95", "p99"), points, strict=True)
    }
