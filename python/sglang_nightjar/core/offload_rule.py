"""When the draft should leave and return: the rule of the Nightjar paper, generalised; for any policy to use.

The paper sends the draft away when γ=0 and free KV stays under a watermark for a while. Here pressure is also a queue
that the cache can't take, and requests that were retracted. It returns when what is in use has fitted into the cache
without the draft's memory, with twice the watermark to spare and nobody waiting, for as long: the gap between the two
conditions keeps it from going to and fro.
"""

from sglang_nightjar.core.messages import Hello, Residency, Telemetry

DEVICE, HOST = "device", "host"


class OffloadRule:
    """One per scheduler.

    Attributes:
        residency: where the draft should be, ``device`` or ``host``.
        reason: why, for people.
    """

    def __init__(self, hello: Hello, watermark: float, persistence_s: float):
        self.residency = DEVICE
        self.reason = ""
        self._watermark = watermark
        self._persistence_ns = int(persistence_s * 1e9)
        self._base = hello.kv_tokens
        self._gains = hello.kv_tokens_without_draft > hello.kv_tokens
        self._max_batch_size = hello.max_batch_size
        self._since_ns: int | None = None
        self._retractions: int | None = None
        self._retracted_ns: int | None = None

    def note(self, record: Telemetry, drafting: bool) -> bool:
        """Take an iteration in; ``drafting`` is whether the policy wants γ above 0 now. True if `residency` changed."""
        if self._retractions is not None and record.retractions > self._retractions:
            self._retracted_ns = record.at_ns
        self._retractions = record.retractions
        if not self._gains:
            return False
        if self.residency == DEVICE:
            if record.gamma > 0 and not drafting:
                # An iteration of exploration says nothing about either.
                return False
            # On its way back it turns round, but for what it misses: that is made good while drafts are wanted.
            is_needed = drafting or record.residency == Residency.CATCHING_UP
            due = not is_needed and self._pressure(record)
        else:
            due = record.residency == Residency.OFFLOADED and self._relief(record)
        if not due:
            self._since_ns = None
            return False
        if self._since_ns is None or record.at_ns < self._since_ns:
            self._since_ns = record.at_ns
        if record.at_ns - self._since_ns < self._persistence_ns:
            return False
        self._since_ns = None
        self._turn(record)
        return True

    def _pressure(self, record: Telemetry) -> bool:
        free = record.kv_capacity - record.kv_used
        # A queue while there are places for requests waits for KV.
        starved = record.queue_length > 0 and record.running < self._max_batch_size and free < record.queued_tokens
        # One record tells of a retraction, and one alone could never last: so it counts for longer than it must.
        retracted = (
            self._retracted_ns is not None and 0 <= record.at_ns - self._retracted_ns <= 2 * self._persistence_ns
        )
        return free < self._watermark * record.kv_capacity or starved or retracted

    def _relief(self, record: Telemetry) -> bool:
        return record.queue_length == 0 and record.kv_used < (1.0 - 2.0 * self._watermark) * self._base

    def _turn(self, record: Telemetry) -> None:
        used = f"{record.kv_used} of {record.kv_capacity} KV tokens in use, {record.queue_length} waiting"
        if self.residency == DEVICE:
            self.residency, self.reason = HOST, f"draft away: {used}"
        else:
            self.residency, self.reason = DEVICE, f"draft back: {used}"
