"""The agent's end of the protocol: what is sent, what is kept until it can be sent, and what of the replies counts."""

import time
from collections import deque
from collections.abc import Callable

from sglang_nightjar.agent.link import Link, LinkState
from sglang_nightjar.core.messages import Ack, Hello, HelloWanted, Plan, Telemetry, TelemetryBatch
from sglang_nightjar.core.wire import WireError, decode, encode
from sglang_nightjar.once_a_minute import rate_limited

#: Records kept while they can't be sent: the recent past, with which a policy process that comes back can warm up.
BACKLOG = 512

#: Records in a frame, and frames at a time: what catching up may cost in one iteration.
RECORDS_AT_ONCE = 16
FRAMES_AT_ONCE = 2

#: An agent with nothing to report says hello again now and then.
HELLO_AGAIN_NS = 20_000_000_000

#: After ZMQ took nothing more, the next attempt waits so long: encoding for nothing costs more than waiting.
_PAUSE_NS = 10_000_000


class PolicyClient:
    """Hello, telemetry and acks out; plans in. No call ever waits.

    Attributes:
        sender: our id in the protocol.
        dropped: records that were never sent, oldest first.
        rejected: frames from the policy process that were no message, or none for us.
        replayed: plans older than one that came before on this connection.
    """

    def __init__(
        self,
        link: Link,
        sender: str,
        hello: Callable[[str, int], Hello],
        stale_after_s: float,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ):
        """``stale_after_s`` of silence make the link stale until a plan comes, which says for how long it is valid."""
        self.link = link
        self.sender = sender
        self.dropped = 0
        self.rejected = 0
        self.replayed = 0
        self._hello = hello
        self._first_stale_after_ns = self._stale_after_ns = int(stale_after_s * 1e9)
        self._clock_ns = clock_ns
        self._backlog: deque[Telemetry] = deque()
        self._acks: deque[tuple[int, int, str]] = deque()
        self._seq = 0
        self._hello_due = True
        self._not_before_ns = 0
        self._sent_ns = 0
        self._life_ns = 0
        self._newest_plan = 0

    @property
    def state(self) -> LinkState:
        if not self.link.connected:
            return LinkState.CONNECTING
        return LinkState.UP if self._clock_ns() - self._life_ns <= self._stale_after_ns else LinkState.STALE

    @property
    def life_ns(self) -> int:
        """When the last valid frame was read."""
        return self._life_ns

    def post(self, record: Telemetry) -> None:
        """Send ``record``, now if that is possible, else later."""
        if len(self._backlog) == BACKLOG:
            self._backlog.popleft()
            self.dropped += 1
        self._backlog.append(record)
        self.flush()

    def introduce_again(self) -> None:
        """Something that `Hello` says has changed."""
        self._hello_due = True

    def acknowledge(self, plan_id: int, iteration: int, refused: str = "") -> None:
        """Tell what became of a plan; see `core.messages.Ack`."""
        self._acks.append((plan_id, iteration, refused))

    def flush(self) -> None:
        """Send what is due, as far as ZMQ takes it."""
        now = self._clock_ns()
        if not self.link.connected or now < self._not_before_ns:
            return
        # The policy process forgets who is silent for a minute, and then has no plan for what comes next.
        self._hello_due = self._hello_due or now - self._sent_ns > HELLO_AGAIN_NS
        if self._hello_due:
            if not self._send(encode(self._hello(self.sender, self._seq + 1))):
                return
            self._hello_due = False
        while self._acks:
            if not self._send(encode(Ack(self.sender, self._seq + 1, *self._acks[0]))):
                return
            self._acks.popleft()
        for _ in range(FRAMES_AT_ONCE):
            if not self._backlog:
                return
            count = min(len(self._backlog), RECORDS_AT_ONCE)
            records = (self._backlog[0],) if count == 1 else tuple(self._backlog[i] for i in range(count))
            if not self._send(encode(TelemetryBatch(self.sender, self._seq + 1, records, self.dropped))):
                return
            for _ in range(count):
                self._backlog.popleft()

    def collect(self) -> Plan | None:
        """Read what has arrived; return the newest plan among it, be it new or repeated."""
        if self.link.notice_events():
            self._hello_due = True
            self._not_before_ns = 0
            # Another process may be at the other end now, whose plans are numbered apart.
            self._newest_plan = 0
            self._stale_after_ns = self._first_stale_after_ns
            self._life_ns = self._clock_ns()
            self.flush()
        newest: Plan | None = None
        for frame in self.link.receive():
            try:
                message = decode(frame)
            except WireError as error:
                self.rejected += 1
                rate_limited.warning("Nightjar: dropped a frame from the policy process: %s", error)
                continue
            if isinstance(message, Plan):
                if message.plan_id < self._newest_plan:
                    self.replayed += 1
                    rate_limited.warning(
                        "Nightjar: dropped plan %d, which is older than plan %d", message.plan_id, self._newest_plan
                    )
                    continue
                self._newest_plan = message.plan_id
                # The policy process repeats plans by its own config, which need not be ours.
                self._stale_after_ns = message.valid_for_ms * 1_000_000
                newest = message
            elif isinstance(message, HelloWanted):
                self._hello_due = True
            else:
                self.rejected += 1
                rate_limited.warning(
                    "Nightjar: dropped a %s from the policy process, which is none for us", type(message).__name__
                )
                continue
            self._life_ns = self._clock_ns()
        return newest

    def close(self) -> None:
        self.link.close()

    def _send(self, frame: bytes) -> bool:
        if self.link.send(frame):
            self._seq += 1
            self._sent_ns = self._clock_ns()
            return True
        self._not_before_ns = self._clock_ns() + _PAUSE_NS
        return False
