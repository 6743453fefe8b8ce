"""How long the runs that are left will take, from those that were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.serve.order import Run
from bench.serve.scenarios import Scenario

#: s, until something was measured: a start of a server; and what comes with a load besides the warm-up.
_START, _BESIDE = 45.0, 12.0


@dataclass
class Forecast:
    """Attributes:
    scenarios: by name.
    warm_up_s: load before every run.
    side_by_side: servers stay up.
    besides: s that runs took beside their loads and the starts of servers.
    """

    scenarios: dict[str, Scenario]
    warm_up_s: float
    side_by_side: bool
    besides: list[float] = field(default_factory=list)

    def seconds(self, todo: Sequence[Run], last: Run | None, up: set[str], starts: Sequence[float]) -> float:
        """For ``todo``, after ``last``; ``up`` are the kinds of servers that run, ``starts`` what earlier ones took."""
        beside = _mean(self.besides, self.warm_up_s + _BESIDE)
        changes = 0
        for run in todo:
            if not self.side_by_side and last is not None and not run.is_compared_with(last):
                up = set()
            if run.arm.server not in up:
                changes += 1
                up = {*up, run.arm.server} if self.side_by_side else {run.arm.server}
            last = run
        loads = sum(self.scenarios[run.scenario].seconds + beside for run in todo)
        return loads + changes * _mean(starts, _START)


def duration(seconds: float) -> str:
    """``25 min`` or ``3 h 05 min``."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 90 else f"{max(1, minutes)} min"


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
