"""One replica: a scheduler with continuous batching, one iteration per step.

As SGLang 0.5.17 without mixed chunks (speculation turns them off): a prefill that fits goes before decoding; what does
not fit waits; when decoding runs out of KV, the requests with the fewest tokens so far are retracted and queue again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import accumulate

import numpy as np

from sglang_nightjar.core.messages import Telemetry
from sglang_nightjar.core.policy import Decision, Policy
from sglang_nightjar.core.residency import Residency
from sglang_nightjar.sim.draft_luck import DraftLuck
from sglang_nightjar.sim.draft_residency import DraftResidency
from sglang_nightjar.sim.loads import Request
from sglang_nightjar.sim.meter import Meter
from sglang_nightjar.sim.setup import Setup
from sglang_nightjar.sim.work_time import WorkTime


class Engine:
    """A replica and its virtual clock.

    With ``oracle`` it runs the best γ whatever ``policy`` says, and moves of its draft are free: what no policy can do.

    Attributes:
        now: ns; the end of the last iteration.
        queue: requests that wait.
        size: requests that decode.
        meter: what is counted.
    """

    def __init__(
        self,
        setup: Setup,
        replica: int,
        policy: Policy,
        seed: int,
        finished: Callable[[int], None],
        oracle: bool = False,
    ) -> None:
        self.setup, self.settings, self.costs = setup, setup.engine, setup.costs
        self.policy, self.finished, self._oracle = policy, finished, oracle
        self.hello = setup.hello(replica)
        self.sender = self.hello.sender
        self.now = 0
        self.queue: deque[Request] = deque()
        self.size = 0
        self.meter = Meter(setup)
        most = self.settings.max_running
        self._requests: list[Request | None] = [None] * most
        self._left = np.zeros(most, np.int64)
        self._lag = np.zeros(most, np.int64)
        self._kind = np.zeros(most, np.int64)
        #: Smallest number of tokens that any request of the batch may still have left; at most 0: look.
        self._slack = 0
        self._context = 0
        self._queued_tokens = 0
        random = np.random.default_rng((seed, 2, replica))
        self._work = WorkTime(self.costs, random, seed, replica)
        self._luck = DraftLuck(setup.acceptance, max(1, self.settings.candidates[-1]), random)
        self._draft = DraftResidency(self.settings, self.meter)
        self._own_telemetry = type(policy).telemetry is not Policy.telemetry
        self._kinds = [0] * len(setup.acceptance.classes)
        self._base: dict[int, float] = {}
        self._plan_gamma: dict[int, int] = {}
        self._pending: deque[tuple[int, Decision]] = deque()
        self._iteration = 0
        self._since = 0
        self._prefill_tokens = 0
        self._retractions = 0
        self._decision: Decision | None = None
        self._decide(policy.hello(self.hello))

    @property
    def busy(self) -> bool:
        """There is something to do."""
        return self.size > 0 or bool(self.queue)

    @property
    def load(self) -> int:
        """Requests that run or wait, for a router."""
        return self.size + len(self.queue)

    def add(self, request: Request, at_ns: int) -> None:
        """A request arrives."""
        if not self.busy:
            # An idle scheduler's next iteration counts from its launch.
            self.now = self._since = max(self.now, at_ns)
        self.queue.append(request)
        self._queued_tokens += request.prompt

    def step(self) -> None:
        """One iteration: prefill if any request fits, else decode."""
        if not (self.queue and self._prefill()):
            if self.size:
                self._decode()
            else:
                self._give_up()

    # Prefill.

    def _prefill(self) -> bool:
        settings, tokens, done = self.settings, 0, 0
        held = self._context
        while self.queue and tokens < settings.chunk and self.size + done < settings.max_running:
            request = self.queue[0]
            free = self._draft.capacity - held - settings.headroom * (self.size + done + 1)
            if request.prefilled == 0 and request.prompt + 1 > free:
                break
            part = min(request.prompt - request.prefilled, settings.chunk - tokens)
            tokens += part
            request.prefilled += part
            self._queued_tokens -= part
            if request.prefilled < request.prompt:
                break
            held += request.prompt + 1
            self.queue.popleft()
            self._join(request, done)
            done += 1
        if tokens == 0:
            return False
        took = self._work.of(self.costs.prefill_ns(tokens), self.now)
        self.now += int(took)
        self._prefill_tokens += tokens
        self.meter.prefill(took)
        self.size += done
        self._first_tokens(done)
        return True

    def _join(self, request: Request, index: int) -> None:
        slot = self.size + index
        self._requests[slot] = request
        self._left[slot] = request.left - 1
        self._kind[slot] = request.kind
        drafts = self._draft.state in (Residency.RESIDENT, Residency.CATCHING_UP)
        self._lag[slot] = 0 if drafts else request.prompt + 1
        self._kinds[request.kind] += 1
        self._context += request.prompt + 1
        self._slack = min(self._slack, request.left - 1)

    def _first_tokens(self, count: int) -> None:
        for slot in range(self.size - count, self.size):
            request = self._requests[slot]
            assert request is not None
            if not request.first_ns:
                request.first_ns = self.now
        self.meter.tokens += count
        if self._slack <= 0:
            self._finish()

    def _give_up(self) -> None:
        """The first request that waits is larger than the whole KV cache: it is refused."""
        request = self.queue.popleft()
        self._queued_tokens -= request.prompt
        self.meter.refused += 1
        self.finished(self.now)

    # Decode.

    def _decode(self) -> None:
        while self._pending and self._pending[0][0] <= self._iteration:
            self._decide(self._pending.popleft()[1], delayed=False)
        self._iteration += 1
        if self._luck.at(self.now):
            self.meter.set_survival(self._luck.survival)
        wanted = self._best_gamma() if self._oracle else self._gamma_for(self.size)
        gamma, extra = self._with_draft(wanted)
        self._make_room(gamma)
        size, context = self.size, self._context
        if gamma:
            lengths = np.minimum(self._luck.draw(self._kind[:size]), gamma)
            counts = np.bincount(lengths, minlength=gamma + 1).tolist()
            accepted = tuple(accumulate(counts[:0:-1]))[::-1]
            committed = size + sum(accepted)
            self._left[:size] -= lengths
        else:
            accepted, committed = (), size
        self._left[:size] -= 1
        state = self._draft.state
        if state is not Residency.RESIDENT:
            self._lag[:size] += 1
        self._slack -= gamma + 1
        self._context = context + committed
        base = self._base_ns(size, gamma) + self.costs.context_ns * context
        took = self._work.of(base + extra, self.now)
        self.now += int(took)
        self.meter.tokens += committed
        self.meter.decode(self._kinds, size, gamma, context, base + extra, took)
        if self._own_telemetry:
            self._report(size, gamma, committed, accepted, state)
        self._since = self.now
        self._prefill_tokens = 0
        if self._slack <= 0:
            self._finish()

    def _report(self, size: int, gamma: int, committed: int, accepted: tuple[int, ...], state: Residency) -> None:
        lag_max = lag_total = 0
        if state is not Residency.RESIDENT:
            lag = self._lag[:size]
            lag_max, lag_total = int(lag.max()), int(lag.sum())
        record = Telemetry(
            self._iteration, self.now, self.now - self._since, size, gamma, committed, self._context,
            self._prefill_tokens, len(self.queue), self._queued_tokens, size, self._context, self._draft.capacity,
            self._retractions, lag_max, lag_total, int(state), 0, 0, size * (gamma + 1), accepted,
        )  # fmt: skip
        decision = self.policy.telemetry(self.sender, record)
        if decision is not None:
            self._decide(decision)

    def _decide(self, decision: Decision | None, delayed: bool = True) -> None:
        if decision is None:
            return
        if delayed and self._decision is not None and self.settings.plan_delay:
            self._pending.append((self._iteration + self.settings.plan_delay, decision))
            return
        self._decision = decision
        self._plan_gamma = {}

    def _with_draft(self, wanted: int) -> tuple[int, float]:
        """γ that can be run, and ns that moving the draft adds to this iteration."""
        if self._oracle or not self.settings.draft.parks:
            return wanted, 0.0
        assert self._decision is not None
        if self._draft.is_settled(self._decision, wanted):
            return wanted, 0.0
        return self._draft.step(self._decision, wanted, self.now, self._context, self._lag[: self.size])

    def _best_gamma(self) -> int:
        return self.meter.best(self._kinds, self.size, self._context)

    def _gamma_for(self, size: int) -> int:
        gamma = self._plan_gamma.get(size)
        if gamma is None:
            decision = self._decision
            gamma = self.settings.start_gamma if decision is None else decision.gamma_for(size)
            self._plan_gamma[size] = gamma
        return gamma

    def _base_ns(self, size: int, gamma: int) -> float:
        key = size * 128 + gamma
        base = self._base.get(key)
        if base is None:
            base = self._base[key] = self.costs.decode_ns(size, gamma)
        return base

    def _make_room(self, gamma: int) -> None:
        while self._context + self.size * (gamma + 1) > self._draft.capacity and self.size > 1:
            left = self._left[: self.size].tolist()
            generated = [
                request.total - left[slot] for slot, request in enumerate(self._requests[: self.size]) if request
            ]
            self._retract(min(range(self.size), key=lambda slot: (generated[slot], -slot)))

    def _retract(self, slot: int) -> None:
        request = self._requests[slot]
        assert request is not None
        left = int(self._left[slot])
        held = request.prompt + request.left - left
        self._remove(slot)
        self._context -= held
        request.prompt, request.left, request.prefilled = held, left, 0
        self._queued_tokens += held
        self.queue.appendleft(request)
        self._retractions += 1
        self.meter.retractions += 1

    def _finish(self) -> None:
        left = self._left[: self.size].tolist()
        for slot in range(self.size - 1, -1, -1):
            if left[slot] > 0:
                continue
            request = self._requests[slot]
            assert request is not None
            self._context -= request.prompt + request.left - left[slot]
            # Tokens past the end are cut off.
            self.meter.finished(request, self.now, -left[slot])
            self._remove(slot)
            self.finished(self.now)
        self._slack = int(self._left[: self.size].min()) if self.size else 0

    def _remove(self, slot: int) -> None:
        """Take a request out of the batch; the last one gets its place."""
        self.size -= 1
        last = self.size
        request = self._requests[slot]
        assert request is not None
        self._kinds[request.kind] -= 1
        self._requests[slot], self._requests[last] = self._requests[last], None
        for array in (self._left, self._lag, self._kind):
            array[slot] = array[last]
