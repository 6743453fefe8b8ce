"""One log line per switch of the γ regime, never one per step."""

import logging
import time
from collections.abc import Callable

from sglang_nightjar.agent.selector import Launch

logger = logging.getLogger(__name__)

#: At most one line per so many seconds: a plan whose γ depends on the batch size can switch with every request.
QUIET_S = 1.0

BATCH_SIZE, DRAFT = "batch_size", "draft"


class RegimeLog:
    """Follows the γ that iterations really used.

    Attributes:
        switches: (from, to, source, reason) of every switch, counted. The reason is the decision's cause if that is a
            new one, BATCH_SIZE if not, and DRAFT if the draft was not ready, or is again.
    """

    def __init__(self, level: int, clock_s: Callable[[], float] = time.monotonic):
        self.switches: dict[tuple[int, int, str, str], int] = {}
        self._level = level
        self._clock_s = clock_s
        self._last: Launch | None = None
        self._logged_gamma: int | None = None
        self._quiet_until = 0.0
        self._unlogged = 0

    @property
    def total(self) -> int:
        return sum(self.switches.values())

    def note(self, launch: Launch, batch_size: int, iteration: int) -> None:
        """The result of ``launch`` has come. What is in force by now may be another decision than its."""
        gamma, decision, held = launch
        source = decision.source
        last, self._last = self._last, launch
        if last is None:
            self._logged_gamma = gamma
        elif gamma != last.gamma:
            key = (last.gamma, gamma, source, _reason(last, launch))
            self.switches[key] = self.switches.get(key, 0) + 1
            self._unlogged += 1
        if not self._unlogged:
            return
        now = self._clock_s()
        if now < self._quiet_until:
            return
        self._quiet_until = now + QUIET_S
        why = "the draft is not ready" if held else decision.reason
        others = f"; {self._unlogged - 1} switches before it were not logged" if self._unlogged > 1 else ""
        logger.log(
            self._level,
            "Nightjar: γ %s → %d at batch size %d, iteration %d (%s: %s%s)",
            self._logged_gamma,
            gamma,
            batch_size,
            iteration,
            source,
            why,
            others,
        )
        self._logged_gamma = gamma
        self._unlogged = 0


def _reason(last: Launch, launch: Launch) -> str:
    if launch.held != last.held:
        return DRAFT
    return launch.decision.cause if launch.decision is not last.decision else BATCH_SIZE
