"""What a decision log says about each second: batch size, γ, throughput, accepted length, and what was decided."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sglang_nightjar.core.messages import Telemetry


@dataclass
class Second:
    """Decode iterations that ended within one second."""

    iterations: int = 0
    requests: int = 0
    committed: int = 0
    busy_ns: int = 0
    gamma_ns: dict[int, int] = field(default_factory=dict)

    @property
    def batch_size(self) -> float:
        """Mean over iterations."""
        return self.requests / self.iterations

    @property
    def gamma(self) -> float:
        """Mean over time."""
        return sum(gamma * ns for gamma, ns in self.gamma_ns.items()) / self.busy_ns

    @property
    def accepted_length(self) -> float:
        """Tokens per request and iteration, the target's own included."""
        return self.committed / self.requests


def read(log: Path) -> dict[int, Second]:
    """By Unix second. A record's time is that of its frame's arrival at the policy process."""
    seconds: dict[int, Second] = {}
    for at, record in records(log):
        second = seconds.setdefault(int(at), Second())
        second.iterations += 1
        second.requests += record.batch_size
        second.committed += record.committed
        second.busy_ns += record.iteration_ns
        second.gamma_ns[record.gamma] = second.gamma_ns.get(record.gamma, 0) + record.iteration_ns
    return seconds


def records(log: Path) -> Iterable[tuple[float, Telemetry]]:
    """(Unix s, record) of every telemetry record in the log, in order."""
    with open(log, encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            frame = entry.get("frame", {})
            if frame.get("type") == "telemetry":
                for row in frame["records"]:
                    yield entry["at"] / 1e9, Telemetry(*row)


def gamma_by_clients(seconds: dict[int, Second], began: float, phases: list[tuple[float, int]]) -> list[float]:
    """Time-weighted mean γ of each phase ``(seconds, clients)``, its first two seconds left out."""
    means, start = [], began
    for length, _ in phases:
        inside = [s for at, s in seconds.items() if start + 2 <= at and at + 1 <= start + length]
        busy = sum(s.busy_ns for s in inside)
        means.append(sum(s.gamma * s.busy_ns for s in inside) / busy if busy else float("nan"))
        start += length
    return means
