"""Runs each phase in a process of its own with a deadline, and keeps what each has found so far."""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: ``put(name, value)``: a phase's finding, kept also if the phase fails afterwards.
Put = Callable[[str, Any], None]


@dataclass(frozen=True)
class Phase:
    """Attributes:
    name: its key in the results.
    seconds: its deadline, from its start.
    work: ``work(put, *arguments)``, a module's own function.
    """

    name: str
    seconds: float
    work: Callable[..., None]


@dataclass
class Record:
    """The results, written to a file whenever they change.

    Attributes:
        file: JSON.
        ends: monotonic time at which everything must be over.
        patience: deadlines are so many times as long.
        found: by phase ``{"state": "done" | "failed" | "timed out" | "left out", "seconds": ..., ...findings}``.
    """

    file: Path
    ends: float
    patience: float = 1.0
    found: dict[str, Any] = field(default_factory=dict)

    def left(self, seconds: float) -> float:
        """The deadline of ``seconds``, or what is left of the whole if that is less."""
        return max(0.0, min(seconds * self.patience, self.ends - time.monotonic()))

    def note(self, phase: str, **values: Any) -> None:
        self.found.setdefault(phase, {}).update(values)
        fresh = self.file.with_suffix(".part")
        fresh.write_text(json.dumps(self.found, indent=1) + "\n")
        fresh.replace(self.file)

    def leave_out(self, phases: list[Phase], why: str) -> None:
        for phase in phases:
            self.note(phase.name, state="left out", error=why)

    def run(self, phase: Phase, *arguments: Any) -> bool:
        """Whether ``phase`` did all of its work in time. Its process is killed at the deadline."""
        seconds = self.left(phase.seconds)
        if seconds < 1:
            self.leave_out([phase], "no time was left")
            return False
        context = multiprocessing.get_context("spawn")
        ours, its = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(its, phase.work, arguments))
        began = time.monotonic()
        process.start()
        # So that the end of the process is the end of the pipe.
        its.close()
        state, error = self._collect(phase.name, ours, seconds)
        process.kill()
        process.join(10)
        took = round(time.monotonic() - began, 1)
        self.note(phase.name, state=state, seconds=took, **({"error": error} if error else {}))
        return state == "done"

    def _collect(self, phase: str, findings: Any, seconds: float) -> tuple[str, str]:
        deadline = time.monotonic() + seconds
        while findings.poll(max(0.0, deadline - time.monotonic())):
            try:
                name, value = findings.recv()
            except EOFError:
                return "failed", "its process died"
            if name is None:
                return ("failed", value) if value else ("done", "")
            self.note(phase, **{name: value})
        return "timed out", f"not done after {seconds:.0f} s"


def _work(findings: Any, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    error = ""
    try:
        work(lambda name, value: findings.send((name, value)), *arguments)
    except BaseException:
        error = traceback.format_exc()
    findings.send((None, error))
