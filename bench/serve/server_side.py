"""What the server says about a run: its decision log second by second, its status, and what it does not mention."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.serve.job import Sample
from sglang_nightjar.core.messages import Residency, Telemetry


@dataclass
class Second:
    """Decode iterations that ended within one second."""

    iterations: int = 0
    requests: int = 0
    committed: int = 0
    busy_ns: int = 0
    gamma_ns: dict[int, int] = field(default_factory=dict)
    queue: int = 0
    kv_used: int = 0
    kv_capacity: int = 0
    residency: int = 0

    def add(self, record: Telemetry) -> None:
        self.iterations += 1
        self.requests += record.batch_size
        self.committed += record.committed
        self.busy_ns += record.iteration_ns
        self.gamma_ns[record.gamma] = self.gamma_ns.get(record.gamma, 0) + record.iteration_ns
        self.queue = max(self.queue, record.queue_length)
        self.kv_used = max(self.kv_used, record.kv_used)
        self.kv_capacity = max(self.kv_capacity, record.kv_capacity)
        self.residency = record.residency

    @property
    def batch_size(self) -> float:
        """Mean over iterations."""
        return self.requests / self.iterations

    @property
    def gamma(self) -> float:
        """Mean over time."""
        return sum(gamma * ns for gamma, ns in self.gamma_ns.items()) / self.busy_ns if self.busy_ns else 0.0

    @property
    def accepted_length(self) -> float:
        """Tokens per request and iteration, the target's own included."""
        return self.committed / self.requests

    def as_json(self, at: float) -> dict[str, float | str]:
        return {
            "at": at,
            "batch_size": round(self.batch_size, 2),
            "gamma": round(self.gamma, 3),
            "tokens": self.committed,
            "accepted_length": round(self.accepted_length, 3),
            "queue": self.queue,
            "kv_used": self.kv_used,
            "kv_capacity": self.kv_capacity,
            "residency": Residency(self.residency).name,
        }


@dataclass(frozen=True)
class LogMark:
    """A place in a decision log, to read on from."""

    path: Path
    offset: int

    @classmethod
    def end_of(cls, path: Path) -> LogMark:
        return cls(path, path.stat().st_size if path.exists() else 0)

    def lines(self) -> Iterator[dict[str, Any]]:
        """What has been written since; a last line without its end is left out."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if line.endswith(b"\n"):
                    yield json.loads(line)


def records(lines: Iterable[dict[str, Any]]) -> Iterator[tuple[float, Telemetry]]:
    """(Unix s, record) of every telemetry record, in order. The time is when its frame reached the policy process."""
    for entry in lines:
        frame = entry.get("frame", {})
        if frame.get("type") == "telemetry":
            for row in frame["records"]:
                yield entry["at"] / 1e9, Telemetry(*row)


def from_log(lines: Sequence[dict[str, Any]], began: float, until: float) -> dict[str, Any]:
    """Series per second and totals of the part of a decision log from ``began`` (Unix s) on, ``until`` s long."""
    inside = [(at - began, r) for at, r in records(lines) if 0 <= at - began < until]
    seconds: dict[int, Second] = {}
    time_by_gamma: dict[int, int] = {}
    time_by_residency: dict[str, int] = {}
    for at, record in inside:
        seconds.setdefault(int(at), Second()).add(record)
        time_by_gamma[record.gamma] = time_by_gamma.get(record.gamma, 0) + record.iteration_ns
        residency = Residency(record.residency).name
        time_by_residency[residency] = time_by_residency.get(residency, 0) + record.iteration_ns
    of_interest = [r for _, r in inside]
    return {
        "seconds": [second.as_json(float(at)) for at, second in sorted(seconds.items())],
        "iterations": len(of_interest),
        "seconds_by_gamma": {str(g): round(ns / 1e9, 3) for g, ns in sorted(time_by_gamma.items())},
        "seconds_by_residency": {name: round(ns / 1e9, 3) for name, ns in time_by_residency.items()},
        "gamma_switches": sum(a.gamma != b.gamma for a, b in itertools.pairwise(of_interest)),
        "retractions": of_interest[-1].retractions - of_interest[0].retractions if of_interest else 0,
        "longest_queue": max((r.queue_length for r in of_interest), default=0),
        "events": [_event(entry, began) for entry in lines if "event" in entry and entry["at"] / 1e9 >= began],
    }


def _event(entry: dict[str, Any], began: float) -> dict[str, Any]:
    return {**entry, "at": round(entry["at"] / 1e9 - began, 3)}


def from_samples(samples: Sequence[Sample]) -> dict[str, Any]:
    """What ``/v1/loads`` said, for every kind of server."""
    return {
        "seconds": [
            {
                "at": round(s.at, 2),
                "running": s.running,
                "waiting": s.waiting,
                "kv_used": s.kv_used,
                "kv_capacity": s.kv_capacity,
            }
            for s in samples
        ],
        "most_running": max((s.running for s in samples), default=0),
        "longest_queue": max((s.waiting for s in samples), default=0),
        "kv_used_most": max((s.kv_used for s in samples), default=0),
    }


@dataclass(frozen=True)
class Counters:
    """Of ``GET /nightjar/status``, for the difference over a run."""

    policy: str
    values: dict[str, int]

    @classmethod
    def of(cls, status: dict[str, Any]) -> Counters:
        dropped = sum(rank["link"]["dropped"] for rank in status["ranks"])
        errors = sum(rank["counters"]["errors"] for rank in status["ranks"])
        values = {**status["counters"], "telemetry_dropped": dropped, "agent_errors": errors}
        return cls(status["policy"]["name"], values)

    def since(self, before: Counters) -> dict[str, int]:
        return {name: value - before.values.get(name, 0) for name, value in self.values.items()}
