"""What the load generator is given and what it gives back: plain data, as JSON between two processes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True)
class Request:
    """One request to send.

    Attributes:
        at: when, in seconds from the beginning; in a closed loop 0, because it is sent when a client is free.
        prompt: token ids.
        new_tokens: tokens that it asks for: exactly so many if lengths are forced, else at most.
    """

    at: float
    prompt: list[int]
    new_tokens: int


@dataclass(frozen=True)
class Clients:
    """So many requests at a time, for ``seconds``."""

    seconds: float
    clients: int


@dataclass(frozen=True)
class Job:
    """One run of a load against one server.

    Attributes:
        url: the server's root.
        key: its API key, or "".
        requests: in order of ``at``.
        seconds: length of the load. What is then still running is waited for.
        clients: empty for an open loop; in a closed loop client k of n sends requests k, k + n, ... (n is the largest
            number of clients), each when it has its last answer, so what a client sends is the same on every server.
        temperature: of sampling; 0 is greedy.
        forced: lengths are forced (``ignore_eos``).
        timeout: seconds after which a request has failed.
    """

    url: str
    requests: list[Request]
    seconds: float
    clients: list[Clients] = field(default_factory=list)
    temperature: float = 0.0
    forced: bool = True
    timeout: float = 300.0
    key: str = ""

    def write(self, path: Path) -> None:
        path.write_bytes(orjson.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Job:
        raw = orjson.loads(path.read_bytes())
        raw["requests"] = [Request(**request) for request in raw["requests"]]
        raw["clients"] = [Clients(**phase) for phase in raw["clients"]]
        return cls(**raw)


@dataclass
class Answer:
    """What became of one request. Times are seconds from the beginning of the load, by one monotonic clock.

    Attributes:
        request: index into ``Job.requests``.
        due: when it was to be sent; in a closed loop, when its client became free.
        sent: when it was sent.
        pieces: (time, tokens so far) of every piece of the stream.
        ended: when the stream ended.
        tokens: token ids of the answer.
        finish: SGLang's reason: ``stop``, ``length`` or ``abort``; "" if none came.
        retractions: how often it was put back into the queue, to free memory.
        cached: prompt tokens that the prefix cache had.
        verify_steps, proposed, accepted: of the draft, as SGLang counts them for this request.
        error: why it failed; "" if it did not.
    """

    request: int
    due: float
    sent: float = 0.0
    pieces: list[tuple[float, int]] = field(default_factory=list)
    ended: float = 0.0
    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    retractions: int = 0
    cached: int = 0
    verify_steps: int = 0
    proposed: int = 0
    accepted: int = 0
    error: str = ""


@dataclass(frozen=True)
class Sample:
    """What ``/v1/loads`` said at one moment: requests that run and that wait, KV tokens in use and in all."""

    at: float
    running: int
    waiting: int
    kv_used: int
    kv_capacity: int


@dataclass
class Outcome:
    """A run of a `Job`.

    Attributes:
        began: Unix time of the beginning.
        answers: one for each request that was due, in order of ``due``.
        samples: the server's load, about every second.
        wall_s: length of the run, until the last answer.
        cpu_s: CPU time of the generator in it.
        worst_lag: the longest that the generator's event loop did not come round, in seconds.
    """

    began: float
    answers: list[Answer]
    samples: list[Sample]
    wall_s: float
    cpu_s: float
    worst_lag: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Outcome:
        answers = [Answer(**{**a, "pieces": [(at, n) for at, n in a["pieces"]]}) for a in raw["answers"]]
        return cls(**{**raw, "answers": answers, "samples": [Sample(**s) for s in raw["samples"]]})
