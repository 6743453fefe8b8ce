"""Nightjar inside one scheduler process: plans in, γ on, telemetry out."""

import logging
import time
from collections.abc import Callable
from typing import Any

from sglang_nightjar.agent import identity
from sglang_nightjar.agent.client import PolicyClient
from sglang_nightjar.agent.collector import Collector
from sglang_nightjar.agent.decision import Decision
from sglang_nightjar.agent.interval import ProposedInLogInterval
from sglang_nightjar.agent.link import Link, rate_limited
from sglang_nightjar.agent.overhead import Overhead
from sglang_nightjar.agent.regimes import RegimeLog
from sglang_nightjar.agent.selector import GammaSelector
from sglang_nightjar.agent.settings import Settings
from sglang_nightjar.agent.steering import Steering

logger = logging.getLogger(__name__)


class SchedulerAgent:
    """One per scheduler process; only the rank that receives SGLang's requests has the link.

    Whatever goes wrong in here must cost speed and never a request, so SGLang's calls come in through `guarded`.

    Attributes:
        errors: exceptions that were caught; each is a bug of ours.
        applied_iteration: first decode iteration of the decision in force.
    """

    def __init__(self, scheduler: Any, selector: GammaSelector, settings: Settings):
        self.scheduler = scheduler
        self.selector = selector
        self.overhead = Overhead()
        self.collector = Collector(scheduler, selector.launches)
        self.interval = ProposedInLogInterval()
        self.errors = 0
        self.applied_iteration = 1
        self.place = identity.Place.of(scheduler)
        self.draft_bytes = identity.private_draft_bytes(scheduler)
        self.regimes = RegimeLog(logging.INFO if self.place.decides else logging.DEBUG)
        self.client: PolicyClient | None = None
        self.steering: Steering | None = None
        if settings.endpoint and self.place.decides:
            hello = identity.hello_maker(scheduler, self.place, selector)
            sender = identity.sender(f"dp{self.place.dp_rank}")
            self.client = PolicyClient(Link(settings.endpoint, settings.keys), sender, hello, settings.stale_after_s)
            self.steering = Steering(self.client, selector)

    def after_pull(self, requests: list[Any] | None) -> None:
        """On the deciding rank, once per loop: append what must reach all ranks to ``requests``."""
        if self.steering is None or requests is None:
            return
        started = time.perf_counter_ns()
        if (decision := self.steering.next_decision()) is not None:
            requests.append(decision)
        self.overhead.add(time.perf_counter_ns() - started)

    def apply(self, decision: Decision) -> None:
        """On every rank of the TP group, in the same iteration, before its batch is chosen."""
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
        if not batch.forward_mode.is_decode() or not result.speculative_num_draft_tokens:
            return
        started = time.perf_counter_ns()
        gamma = result.speculative_num_draft_tokens - 1
        for req in batch.reqs:
            req.spec_num_cap_tokens += gamma
        self.overhead.add(time.perf_counter_ns() - started)

    def after_result(self, batch: Any, result: Any) -> None:
        """After each batch's result was processed."""
        started = time.perf_counter_ns()
        mode = batch.forward_mode
        if not mode.is_decode():
            if mode.is_extend():
                self.collector.note_prefill(batch)
            self.overhead.add(time.perf_counter_ns() - started)
            self.overhead.close_iteration()
            return
        record = self.collector.record(batch, result)
        decision = self.selector.decision
        self.regimes.note(record.gamma, record.batch_size, record.iteration, decision.source, decision.reason)
        if self.client is not None:
            self.client.post(record)
        self.overhead.add(time.perf_counter_ns() - started)
        self.overhead.close_iteration()

    def on_idle(self) -> None:
        """Nothing runs: what is left goes out. What that costs is nobody's loss, and no iteration's."""
        if self.client is not None:
            self.client.flush()
        self.overhead.drop_iteration()

    def guarded(self, part: Callable[..., None], *args: Any) -> None:
        """Call ``part``; an exception is counted and logged, and goes no further."""
        try:
            part(*args)
        except Exception as error:
            self.errors += 1
            rate_limited.warning("%s failed: %r", part.__name__, error)
            logger.debug("Nightjar: %s failed", part.__name__, exc_info=True)


#: The agent of this process, if it is a scheduler under Nightjar.
current: SchedulerAgent | None = None
