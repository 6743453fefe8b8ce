"""Makes the runs of a benchmark that are not there yet, one after the other, and says how long the rest will take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.serve.forecast import Forecast, duration
from bench.serve.measurement import Measurement
from bench.serve.order import Run
from bench.serve.scenarios import Scenario
from bench.serve.servers import ServerFault
from bench.serve.store import Store
from sglang_nightjar.observe.client import ServerError

#: So many runs in a row that can't be made end a benchmark.
_HOPELESS = 3


@dataclass
class Bench:
    """One benchmark.

    Attributes:
        scenarios: by name.
        left_out: runs that could not be made.
    """

    store: Store
    scenarios: dict[str, Scenario]
    measurement: Measurement
    say: Callable[[str], None] = print
    left_out: list[str] = field(default_factory=list)

    def run(self, runs: Sequence[Run], within_s: float | None = None) -> None:
        """Make those that are missing; with ``within_s`` only while they are expected to end within so many seconds.

        Raises KeyboardInterrupt, and what a server raised that failed several times in a row; what is finished is kept.
        """
        fleet, warm_up_s = self.measurement.fleet, self.measurement.settings.warm_up_s
        forecast = Forecast(self.scenarios, warm_up_s, fleet.side_by_side)
        began, in_a_row, last = time.monotonic(), 0, None
        todo = [run for run in runs if not self.store.has(run.name)]
        if len(todo) < len(runs):
            self.say(f"{len(runs) - len(todo)} of {len(runs)} runs are there already")
        if fleet.side_by_side:
            self._start_all(todo)
        for number, run in enumerate(todo):
            if not fleet.side_by_side and last is not None and not run.is_compared_with(last):
                fleet.stop()
            where = f"[{number + 1}/{len(todo)}]"
            before, starts = time.monotonic(), len(fleet.starts)
            expected = forecast.seconds([run], last, fleet.up, fleet.starts)
            if within_s is not None and before - began + expected > within_s:
                self.say(f"no time for the next run; the same command goes on, with {len(todo) - number} runs")
                return
            last = run
            if run.arm.server not in fleet.up:
                self.say(f"starting a server: {run.arm.server}")
            try:
                result = self.measurement.make(run, self.scenarios[run.scenario])
            except (ServerFault, ServerError, OSError, RuntimeError) as error:
                self.left_out.append(run.name)
                in_a_row += 1
                if in_a_row == _HOPELESS:
                    raise
                self.say(f"{where} {run.name} could not be made: {error}")
                fleet.stop()
                continue
            in_a_row = 0
            self.store.save(run.name, result)
            spent = time.monotonic() - before - sum(fleet.starts[starts:])
            forecast.besides.append(max(0.0, spent - self.scenarios[run.scenario].seconds))
            left = forecast.seconds(todo[number + 1 :], run, fleet.up, fleet.starts)
            self.say(f"{where} {_line(result)}" + (f"; {duration(left)} left" if left else ""))

    def _start_all(self, todo: Sequence[Run]) -> None:
        """All servers, before the first run: beside servers that idle one is slower than alone, so none is alone."""
        fleet = self.measurement.fleet
        for kind in dict.fromkeys(run.arm.server for run in todo):
            if kind not in fleet.up:
                self.say(f"starting a server: {kind}")
                # One that does not start is tried again, and accounted for, when its first run is due.
                with contextlib.suppress(RuntimeError, OSError):
                    fleet.get(kind)


def _line(result: dict[str, Any]) -> str:
    whole = result["whole"]
    faults = "; ".join(fault["text"] for fault in result["faults"])
    text = f"{result['scenario']}, {result['arm']}, repetition {result['repetition'] + 1}: "
    text += f"{whole['tokens_per_s']:.1f} tokens/s"
    if whole["latency_s"]:
        text += f", latency {whole['latency_s']['mean']:.2f} s"
    return f"{text}, INVALID: {faults}" if faults else text
