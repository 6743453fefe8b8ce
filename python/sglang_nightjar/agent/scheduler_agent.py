"""Nightjar inside one scheduler process: plans in, γ on, telemetry out.

The scheduler's thread only notes what happened and picks up what was decided; a thread beside it does the rest. Waking
a sleeping thread costs more than all the notes of an iteration, so that thread is not woken: it looks now and then
(`agent.cadence`).
"""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang_nightjar.agent import identity
from sglang_nightjar.agent.cadence import Cadence
from sglang_nightjar.agent.client import PolicyClient
from sglang_nightjar.agent.collector import Collector
from sglang_nightjar.agent.decision import Decision
from sglang_nightjar.agent.interval import ProposedInLogInterval
from sglang_nightjar.agent.link import Link
from sglang_nightjar.agent.regimes import RegimeLog
from sglang_nightjar.agent.sampler import PrefillSample, Pressure, Sampler
from sglang_nightjar.agent.selector import GammaSelector
from sglang_nightjar.agent.settings import Settings
from sglang_nightjar.agent.steering import Steering
from sglang_nightjar.draft import upkeep
from sglang_nightjar.once_a_minute import rate_limited
from sglang_nightjar.profile import store

logger = logging.getLogger(__name__)

#: Samples that may wait for the thread; it reads them up to 100 times a second.
_SAMPLES = 4096


class SchedulerAgent:
    """One per scheduler process; only the rank that receives SGLang's requests has the link and the thread.

    Whatever goes wrong in here must cost speed and never a request, so SGLang's calls come in through `guarded`.

    Attributes:
        errors: exceptions that were caught; each is a bug of ours.
        applied_iteration: first decode iteration of the decision in force.
    """

    def __init__(self, scheduler: Any, selector: GammaSelector, settings: Settings):
        self.scheduler = scheduler
        self.selector = selector
        self.interval = ProposedInLogInterval()
        self.errors = 0
        self.applied_iteration = 1
        self.place = identity.Place.of(scheduler)
        self.draft_bytes = identity.private_draft_bytes(scheduler)
        self.collector = Collector()
        self.regimes = RegimeLog(logging.INFO)
        self.client: PolicyClient | None = None
        self.steering: Steering | None = None
        self._sampler = Sampler(scheduler, selector.launches, _SAMPLES)
        # Where the thread leaves the newest decision. Each end of a deque is safe to use from one thread.
        self._decided: deque[Decision] = deque(maxlen=1)
        self._pressure = Pressure()
        self._cadence = Cadence()
        self._spent_ns = 0
        self._thread = threading.Thread(target=self._run, name="nightjar-agent", daemon=True)
        if not self.place.decides:
            return
        if settings.endpoint:
            hello = identity.hello_maker(scheduler, self.place, selector)
            sender = identity.sender(f"dp{self.place.dp_rank}")
            self.client = PolicyClient(Link(settings.endpoint, settings.keys), sender, hello, settings.stale_after_s)
            self.steering = Steering(self.client, selector)
        self._thread.start()

    # The scheduler's thread.

    def after_pull(self, requests: list[Any] | None) -> None:
        """On the deciding rank, once per loop: append what must reach all ranks to ``requests``."""
        if self._decided and requests is not None:
            requests.append(self._decided.popleft())

    def apply(self, decision: Decision) -> None:
        """On every rank of the TP group, in the same iteration, before its batch is chosen."""
        if decision.trim and upkeep.current is not None:
            self.guarded(upkeep.current.measure_passes)
        self.selector.decide(decision)
        self.applied_iteration = self.selector.launched + 1
        logger.debug(
            "Nightjar: decision %s %d applies from iteration %d (%s)",
            decision.source,
            decision.plan_id,
            self.applied_iteration,
            decision.gammas,
        )
        if self.client is not None and decision.plan_id:
            self.client.acknowledge(decision.plan_id, self.applied_iteration)

    def before_result(self, batch: Any, result: Any) -> None:
        """Before each batch's result is processed, and answers are sent: count what was proposed for each request.

        Only DSpark drafts use the field otherwise; it travels to the tokenizer process with the answer.
        """
        if not batch.forward_mode.is_decode():
            return
        started = time.perf_counter_ns()
        gamma = (result.speculative_num_draft_tokens or 1) - 1
        if gamma:
            for req in batch.reqs:
                req.spec_num_cap_tokens += gamma
        self._spent_ns += time.perf_counter_ns() - started

    def after_result(self, batch: Any, result: Any) -> None:
        """After each batch's result was processed."""
        started = time.perf_counter_ns()
        if batch.forward_mode.is_decode():
            if self.place.decides:
                spent, self._spent_ns = self._spent_ns, 0
                self._sampler.decode(batch, result, spent)
            elif self.selector.launches:
                self.selector.launches.popleft()
        elif batch.forward_mode.is_extend() and self.place.decides:
            self._sampler.prefill(batch)
        self._spent_ns += time.perf_counter_ns() - started

    def note_idle(self) -> None:
        """The scheduler looked for a batch and found none; no result is still to come."""
        self._sampler.was_idle = True

    def guarded(self, part: Callable[..., None], *args: Any) -> None:
        """Call ``part``; an exception is counted and logged, and goes no further."""
        try:
            part(*args)
        except Exception as error:
            self.errors += 1
            rate_limited.warning("Nightjar: %s failed: %r", part.__name__, error)
            logger.debug("Nightjar: %s failed", part.__name__, exc_info=True)

    # The thread beside it.

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            # A batch thread does not push the scheduler's thread off its core when its sleep ends.
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            # For `top -H` and the like: Python's own name of a thread is not seen from outside.
            Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(self._thread.name)
        while True:
            time.sleep(self._cadence.period_s())
            self._cadence.looked(bool(self._sampler.samples))
            self.guarded(self._report)
            self.guarded(self._steer)

    def _report(self) -> None:
        """Turn the samples that are there into records, and send them."""
        samples = self._sampler.samples
        if samples:
            # Reads what another thread writes; should that ever fail, the figures of the last look stand.
            self.guarded(self._look_at_pressure)
        while samples:
            sample = samples.popleft()
            if isinstance(sample, PrefillSample):
                self.collector.note_prefill(sample)
                continue
            record = self.collector.record(sample, self._pressure)
            self._cadence.saw(record)
            if sample.launch is not None:
                self.regimes.note(sample.launch, record.batch_size, record.iteration)
            if self.client is not None:
                self.client.post(record)

    def _look_at_pressure(self) -> None:
        self._pressure = self._sampler.pressure()

    def _steer(self) -> None:
        """See what the policy process says, and leave it for the scheduler."""
        if self.steering is None or self.client is None:
            return
        if upkeep.current is not None and upkeep.current.has_news():
            self.client.introduce_again()
            store.save(identity.pool_of(self.scheduler.server_args), upkeep.current.costs)
        if (decision := self.steering.next_decision()) is not None:
            self._cadence.decided(decision)
            self._decided.append(decision)
        self.client.flush()


#: The agent of this process, if it is a scheduler under Nightjar.
current: SchedulerAgent | None = None
