"""One log line per switch of the γ regime, never one per step."""

import logging
import time
from collections.abc import Callable

from sglang_nightjar.agent.selector import Launch

logger = logging.getLogger(__name__)

#: At most one line per so many seconds: a plan whose γ depends on the batch size can switch with every request.
QUIET_S = 1.0


class RegimeLog:
    """Follows the γ that iterations really used.

    Attributes:
        switches: (from, to, source) of every switch, counted; source is that of the decision.
    """

    def __init__(self, level: int, clock_s: Callable[[], float] = time.monotonic):
        self.switches: dict[tuple[int, int, str], int] = {}
        self._level = level
        self._clock_s = clock_s
        self._gamma: int | None = None
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
        if gamma != self._gamma:
            if self._gamma is not None:
                key = (self._gamma, gamma, source)
                self.switches[key] = self.switches.get(key, 0) + 1
                self._unlogged += 1
            else:
                self._logged_gamma = gamma
            self._gamma = gamma
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
