"""Who asks for what and when: open loops (Poisson, bursts, traces) and closed ones."""

from __future__ import annotations

import csv
import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sglang_nightjar.errors import ConfigError

NEVER = 2**62
_CHUNK = 4096


@dataclass(slots=True)
class Request:
    """A request on its way.

    Attributes:
        arrival_ns: when it came.
        prompt: tokens to prefill: its prompt, and after a retraction what it had generated, too.
        left: tokens still to be generated.
        kind: index of its class.
        total: tokens to be generated in all.
        first_ns, end_ns: when its first and its last token were there; 0 before that.
        prefilled: prompt tokens done.
    """

    arrival_ns: int
    prompt: int
    left: int
    kind: int
    total: int
    first_ns: int = 0
    prefilled: int = 0
    end_ns: int = 0


@dataclass(frozen=True)
class Lengths:
    """Log-normal lengths in tokens, rounded and clipped to [low, high]. ``sigma`` 0: all are ``median``."""

    median: float = field(default=64.0, metadata={"min": 1.0})
    sigma: float = field(default=0.0, metadata={"min": 0.0, "max": 5.0})
    low: int = field(default=1, metadata={"min": 1})
    high: int = field(default=1_000_000, metadata={"min": 1})

    def draw(self, count: int, random: np.random.Generator) -> list[int]:
        """``count`` lengths."""
        drawn = self.median * np.exp(self.sigma * random.standard_normal(count))
        return np.clip(np.rint(drawn), self.low, self.high).astype(int).tolist()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LoadSettings:
    """A load. Exactly one of ``rates``, ``bursts``, ``trace``, ``clients`` is set.

    Attributes:
        rates: (seconds, requests per second) phases of a Poisson process.
        bursts: (requests per second, mean seconds) of the states of a Markov-modulated Poisson process; from each state
            it goes to another one at random.
        trace: a file of TIMESTAMP,ContextTokens,GeneratedTokens; lengths are the trace's.
        clients: (seconds, clients) phases of a closed loop: each client sends its next request when it has its answer.
        seconds: length of a load of bursts; of a trace at most.
        time_scale, rate_scale: a trace's time is stretched by the first; every request comes the second many times.
        prompt, output: lengths.
        clip: longest prompt and longest output of a trace.
    """

    rates: tuple[tuple[float, ...], ...] = ()
    bursts: tuple[tuple[float, ...], ...] = ()
    trace: str | None = None
    clients: tuple[tuple[float, ...], ...] = ()
    seconds: float = field(default=300.0, metadata={"min": 0.0})
    time_scale: float = field(default=1.0, metadata={"min": 1e-6})
    rate_scale: float = field(default=1.0, metadata={"min": 0.0})
    prompt: Lengths = field(default_factory=lambda: Lengths(48))
    output: Lengths = field(default_factory=lambda: Lengths(128))
    clip: tuple[int, ...] = (8192, 4096)

    def __post_init__(self) -> None:
        given = [name for name in ("rates", "bursts", "trace", "clients") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"exactly one of rates, bursts, trace, clients must be set, not {given or 'none'}")
        for name in ("rates", "bursts", "clients"):
            if any(len(row) != 2 or min(row) < 0 for row in getattr(self, name)):
                raise ValueError(f"{name}: {getattr(self, name)!r} must be a list of pairs of numbers from 0")
        if len(self.clip) != 2:
            raise ValueError(f"clip: {self.clip!r} must be the longest prompt and the longest output")

    @property
    def duration_ns(self) -> int:
        """When it ends. A trace may end before, with its last request; ``seconds`` is 300 unless it is set."""
        phases = self.rates or self.clients
        if phases:
            return int(1e9 * sum(seconds for seconds, _ in phases))
        return int(1e9 * self.seconds)


class OpenLoop:
    """Requests at times of their own.

    Attributes:
        next_at: when the next one comes, ns; `NEVER` after the last.
    """

    def __init__(self, requests: Iterator[Request]) -> None:
        self._requests = requests
        self._advance()

    def _advance(self) -> None:
        self._next = next(self._requests, None)
        self.next_at = NEVER if self._next is None else self._next.arrival_ns

    def pop(self) -> Request:
        """The request that came at ``next_at``."""
        request = self._next
        assert request is not None
        self._advance()
        return request

    def finished(self, now_ns: int) -> None:
        """A request got its answer."""


class ClosedLoop:
    """So many clients, each with one request at a time. Attributes as of `OpenLoop`."""

    def __init__(self, settings: LoadSettings, shares: np.ndarray, random: np.random.Generator) -> None:
        ends = np.cumsum([seconds for seconds, _ in settings.clients]) * 1e9
        self._phases = [(int(end), int(clients)) for end, (_, clients) in zip(ends, settings.clients, strict=True)]
        self._bodies = _bodies(settings, shares, random)
        self._phase, self._running = 0, 0
        self._due: int | None = 0
        self.next_at = 0
        self._look(0)

    @property
    def _wanted(self) -> int:
        return self._phases[self._phase][1]

    def _look(self, now_ns: int) -> None:
        """Find the time of the next request: now if a client is free, else the next phase with more clients."""
        while now_ns >= self._phases[self._phase][0]:
            if self._phase + 1 == len(self._phases):
                self.next_at = NEVER
                return
            self._phase += 1
        if self._running < self._wanted:
            self.next_at = now_ns
            return
        later = [
            self._phases[index - 1][0]
            for index in range(self._phase + 1, len(self._phases))
            if self._phases[index][1] > self._running
        ]
        self.next_at = later[0] if later else NEVER

    def pop(self) -> Request:
        """The request that came at ``next_at``."""
        now = self.next_at
        self._look(now)
        self._running += 1
        prompt, output, kind = next(self._bodies)
        self._look(now)
        return Request(now, prompt, output, kind, output)

    def finished(self, now_ns: int) -> None:
        """A client got its answer."""
        self._running -= 1
        self._look(now_ns)


def make(settings: LoadSettings, shares: np.ndarray, seed: int) -> OpenLoop | ClosedLoop:
    """The load; the same seed gives the same requests. Raises ConfigError for a trace that can't be read."""
    random = np.random.default_rng((seed, 1))
    if settings.clients:
        return ClosedLoop(settings, shares, random)
    if settings.trace is not None:
        return OpenLoop(_trace(settings, shares, random))
    times = _poisson(settings.rates, random) if settings.rates else _modulated(settings, random)
    return OpenLoop(
        Request(at, prompt, output, kind, output)
        for at, (prompt, output, kind) in zip(times, _bodies(settings, shares, random), strict=False)
    )


def _bodies(settings: LoadSettings, shares: np.ndarray, random: np.random.Generator) -> Iterator[tuple[int, int, int]]:
    while True:
        kinds = random.choice(len(shares), _CHUNK, p=shares).tolist()
        yield from zip(settings.prompt.draw(_CHUNK, random), settings.output.draw(_CHUNK, random), kinds, strict=True)


def _poisson(phases: tuple[tuple[float, ...], ...], random: np.random.Generator) -> Iterator[int]:
    start = 0.0
    for seconds, rate in phases:
        now, end = start, start + seconds * 1e9
        while rate > 0 and now < end:
            for at in (now + np.cumsum(random.exponential(1e9 / rate, _CHUNK))).tolist():
                now = at
                if at >= end:
                    break
                yield int(at)
        start = end


def _modulated(settings: LoadSettings, random: np.random.Generator) -> Iterator[int]:
    """Markov-modulated Poisson process (Fischer and Meier-Hellstern 1993)."""
    states, state, now, end = settings.bursts, 0, 0.0, settings.seconds * 1e9
    while now < end:
        rate, dwell = states[state]
        until = min(end, now + random.exponential(dwell * 1e9))
        at = now
        while rate > 0:
            at += random.exponential(1e9 / rate)
            if at >= until:
                break
            yield int(at)
        now = until
        if len(states) > 1:
            state = (state + 1 + int(random.integers(len(states) - 1))) % len(states)


def read_trace(file: Path) -> list[tuple[float, int, int]]:
    """(second, prompt tokens, output tokens) of each row, from 0 s. Raises ConfigError."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = [
                (_second(row["TIMESTAMP"]), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
                for row in csv.DictReader(lines)
            ]
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{file} is no table of TIMESTAMP,ContextTokens,GeneratedTokens: {error}") from None
    if not rows:
        raise ConfigError(f"{file}: no requests in it")
    rows.sort()
    return [(at - rows[0][0], prompt, output) for at, prompt, output in rows]


def _second(text: str) -> float:
    # Azure writes seven digits of a second; Python's parser takes six.
    head, _, tail = text.partition(".")
    return datetime.datetime.fromisoformat(head + "+00:00").timestamp() + float(f"0.{tail or 0}")


def _trace(settings: LoadSettings, shares: np.ndarray, random: np.random.Generator) -> Iterator[Request]:
    assert settings.trace is not None
    end = settings.seconds * 1e9
    for at, prompt, output in read_trace(Path(settings.trace)):
        at_ns = int(at * 1e9 * settings.time_scale)
        if at_ns >= end:
            return
        copies = int(settings.rate_scale) + (random.random() < settings.rate_scale % 1.0)
        for _ in range(copies):
            kind = int(random.choice(len(shares), p=shares))
            wanted = max(1, min(output, settings.clip[1]))
            yield Request(at_ns, max(1, min(prompt, settings.clip[0])), wanted, kind, wanted)
