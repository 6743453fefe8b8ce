"""How many requests arrive, from the process that receives them: before the scheduler's queue shows a surge."""

import asyncio
import logging
import time
from collections.abc import Callable

from sglang_nightjar.agent import identity
from sglang_nightjar.agent.link import Link
from sglang_nightjar.agent.settings import Settings
from sglang_nightjar.core.messages import Arrivals
from sglang_nightjar.core.wire import encode

logger = logging.getLogger(__name__)

INTERVAL_S = 0.05

#: What could not be reported for so long is old news.
_FORGET_NS = 1_000_000_000


class ArrivalReporter:
    """Counts, and reports once per interval in which anything arrived. It costs an idle server nothing.

    Attributes:
        reported: requests in reports that were sent.
    """

    def __init__(self, link: Link, sender: str, clock_ns: Callable[[], int] = time.monotonic_ns):
        self.reported = 0
        self._link = link
        self._sender = sender
        self._clock_ns = clock_ns
        self._seq = 0
        self._requests = 0
        self._prompt_tokens = 0
        self._since_ns = 0
        self._is_due = False

    def note(self, requests: int, prompt_tokens: int) -> None:
        """``requests`` with together ``prompt_tokens`` have arrived; call it on the event loop."""
        if not self._requests:
            self._since_ns = self._clock_ns()
        self._requests += requests
        self._prompt_tokens += prompt_tokens
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(INTERVAL_S, self.report)

    def report(self) -> None:
        """Send what was counted; if it can't be sent, try again for a second, with what comes meanwhile."""
        self._is_due = False
        if not self._requests:
            return
        self._link.notice_events()
        # The policy process has nothing to say to us; whatever it sent must not pile up.
        for _ in self._link.receive():
            pass
        now = self._clock_ns()
        message = Arrivals(
            sender=self._sender,
            seq=self._seq + 1,
            server=identity.server(),
            at_ns=now,
            interval_ns=now - self._since_ns,
            requests=self._requests,
            prompt_tokens=self._prompt_tokens,
        )
        sent = self._link.send(encode(message))
        if sent:
            self._seq += 1
            self.reported += self._requests
        if sent or now - self._since_ns > _FORGET_NS:
            self._requests = self._prompt_tokens = 0
        else:
            self._schedule()


_reporters: dict[str, ArrivalReporter] = {}


def reporter(settings: Settings) -> ArrivalReporter | None:
    """The reporter of this process for the policy process in ``settings``; None if there is none."""
    if settings.endpoint is None:
        return None
    if settings.endpoint not in _reporters:
        link = Link(settings.endpoint, settings.keys)
        _reporters[settings.endpoint] = ArrivalReporter(link, identity.sender("tokenizer0"))
    return _reporters[settings.endpoint]
