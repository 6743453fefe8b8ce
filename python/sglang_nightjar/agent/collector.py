"""Telemetry records out of the scheduler's samples, and the totals that status shows. Runs beside the scheduler."""

from dataclasses import dataclass, field

from sglang_nightjar.agent.decision import NO_PLAN
from sglang_nightjar.agent.durations import Durations
from sglang_nightjar.agent.sampler import DecodeSample, PrefillSample, Pressure
from sglang_nightjar.core.messages import Telemetry


@dataclass
class Totals:
    """What happened since the start.

    Attributes:
        iterations: decode iterations.
        time_ns_by_gamma: their duration.
        verified: requests in decode iterations, summed; each gained one token besides the accepted ones.
        proposed, accepted: draft tokens.
        retractions: requests retracted.
    """

    iterations: int = 0
    time_ns_by_gamma: dict[int, int] = field(default_factory=dict)
    verified: int = 0
    proposed: int = 0
    accepted: int = 0
    retractions: int = 0


class Collector:
    """Makes the records.

    Attributes:
        totals: see `Totals`.
        last: the newest record; None before the first.
        overhead: what the agent costs the scheduler's thread, per iteration.
    """

    def __init__(self) -> None:
        self.totals = Totals()
        self.last: Telemetry | None = None
        self.overhead = Durations()
        self._since_ns = 0
        self._prefill_tokens = 0

    def note_prefill(self, sample: PrefillSample) -> None:
        """A prefill came between decode iterations."""
        self._note_start(sample)
        self._prefill_tokens += sample.tokens

    def record(self, sample: DecodeSample, pressure: Pressure) -> Telemetry:
        """The record of a decode iteration; ``pressure`` is that of now."""
        self._note_start(sample)
        self.overhead.note(sample.overhead_ns)
        gamma, told = (sample.width or 1) - 1, sample.told
        drafts = sum(sample.correct or ()) if gamma else 0
        iteration_ns = max(0, sample.at_ns - self._since_ns)
        totals = self.totals
        totals.iterations += 1
        totals.time_ns_by_gamma[gamma] = totals.time_ns_by_gamma.get(gamma, 0) + iteration_ns
        totals.verified += sample.batch_size
        totals.proposed += gamma * sample.batch_size
        totals.accepted += drafts
        committed = sample.batch_size + drafts
        made = self.last = Telemetry(
            iteration=totals.iterations,
            at_ns=sample.at_ns,
            iteration_ns=iteration_ns,
            batch_size=sample.batch_size,
            gamma=gamma,
            committed=committed,
            context_tokens=pressure.context_tokens,
            prefill_tokens=self._prefill_tokens,
            queue_length=pressure.queue_length,
            queued_tokens=pressure.queued_tokens,
            running=pressure.running,
            kv_used=pressure.kv_used,
            kv_capacity=pressure.kv_capacity,
            retractions=totals.retractions,
            lag_max=sample.lag_max,
            lag_total=sample.lag_total,
            residency=sample.residency,
            cuda_graph=1 if sample.cuda_graph else 0,
            plan_id=sample.launch.decision.plan_id if sample.launch else NO_PLAN,
            rows=told.rows if told else sample.batch_size * (gamma + 1),
            accepted=accepted_by_position((told.likely if told else sample.correct) or (), gamma),
        )
        self._prefill_tokens = 0
        self._since_ns = sample.at_ns
        return made

    def _note_start(self, sample: PrefillSample | DecodeSample) -> None:
        # What else the scheduler does between two batches, a piece of a transition for example, is the iteration's.
        if sample.after_idle or not self._since_ns:
            self._since_ns = int(sample.launched_s * 1e9)


def accepted_by_position(correct: list[int] | tuple[int, ...], gamma: int) -> tuple[int, ...]:
    """At position i how many requests had their i-th draft token accepted, from each request's number of them."""
    if gamma == 0 or not correct:
        return ()
    counts = [0] * (gamma + 1)
    for number in correct:
        counts[number] += 1
    # A request with k accepted tokens had the first k positions accepted: sum up from the far end.
    for position in range(gamma - 1, 0, -1):
        counts[position] += counts[position + 1]
    return tuple(counts[1:])
