"""The loads, sized for the demo pair on two cores with AMX: one repetition takes a minute and a half.

There, one request gets about 50 tokens a second, and 32 requests together a few hundred; with some 64 tokens each, 4 to
5 requests a second are all that it can do. ``Scale`` fits them to another machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.serve import arrivals
from bench.serve.arrivals import TraceRow
from bench.serve.job import Clients


@dataclass(frozen=True)
class Phase:
    """A part of the load that is looked at by itself. Parts of equal name count as one.

    Attributes:
        start, end: in s of the load.
        clients: of a closed loop, how many requests at a time; 0 of an open one.
    """

    name: str
    start: float
    end: float
    clients: int = 0


@dataclass(frozen=True)
class Arrival:
    """A request of an open loop. Without lengths of its own (0) it gets those of the prompts and of the settings."""

    at: float
    prompt_tokens: int = 0
    new_tokens: int = 0


@dataclass(frozen=True)
class Scenario:
    """A load.

    Attributes:
        name: of one word.
        question: what it shows, a clause.
        phases: parts of it, in order, without gaps.
        arrive: an open loop: the arrivals, given random numbers; None for a closed loop.
        clients: a closed loop: how many requests at a time, and for how long.
        new_tokens: (fewest, most) tokens of an answer, where those of the settings would not do.
    """

    name: str
    question: str
    phases: tuple[Phase, ...]
    arrive: Callable[[random.Random], list[Arrival]] | None = None
    clients: tuple[Clients, ...] = ()
    new_tokens: tuple[int, int] | None = None

    @property
    def seconds(self) -> float:
        return self.phases[-1].end

    @property
    def is_open(self) -> bool:
        return self.arrive is not None


#: The scenario in which it matters where the draft is.
MEMORY = "memory"
#: s. An answer takes up to so long on a full machine; a shorter phase would show only what the one before it left.
_SHORTEST = 5.0


@dataclass(frozen=True)
class Scale:
    """How much longer a scenario lasts, and how many times more requests come (and clients there are).

    No phase gets shorter than 5 s; bursts and the pauses between them keep their lengths, there are fewer or more.
    """

    time: float = 1.0
    rate: float = 1.0

    def seconds(self, normal: float) -> float:
        """Of a phase of ``normal`` seconds."""
        return max(_SHORTEST, normal * self.time)


def catalogue(scale: Scale | None = None, trace: list[TraceRow] | None = None) -> dict[str, Scenario]:
    """All scenarios by name; with a ``trace`` its replay too."""
    scale = scale or Scale()
    makers = (_surge, _bursts, _day, _memory, _sweep, _clients, _fixed)
    scenarios = [make(scale) for make in makers]
    if trace:
        scenarios.append(_replay(scale, trace))
    return {scenario.name: scenario for scenario in scenarios}


def warm_up(seconds: float, most: int) -> Scenario:
    """A closed loop that grows from one request to ``most``: what comes before every run."""
    steps = [(0.2, 1), (0.2, max(1, most // 8)), (0.3, max(1, most // 3)), (0.3, most)]
    clients = tuple(Clients(seconds * share, number) for share, number in steps)
    return Scenario("warm-up", "", (Phase("", 0.0, seconds),), clients=clients)


def piecewise(name: str, question: str, steps: list[tuple[str, float, float]]) -> Scenario:
    """Poisson arrivals at a rate that changes in steps of (name, seconds, requests per second)."""
    phases = _phases([(label, seconds) for label, seconds, _ in steps])

    def arrive(draw: random.Random) -> list[Arrival]:
        times = []
        for phase, (_, _, rate) in zip(phases, steps, strict=True):
            times += arrivals.poisson(rate, phase.start, phase.end, draw)
        return [Arrival(at) for at in times]

    return Scenario(name, question, phases, arrive)


def _surge(scale: Scale) -> Scenario:
    steps = [("before", 20.0, 0.4), ("surge", 30.0, 5.0), ("recovery", 40.0, 0.4)]
    return piecewise("surge", "a step to more than the machine can do, and back", _scaled(steps, scale))


def _memory(scale: Scale) -> Scenario:
    steps = [("before", 15.0, 0.2), ("surge", 25.0, 2.0), ("recovery", 60.0, 0.1)]
    question = "a surge of long answers, which the KV cache of the usual size can't hold all at once"
    # 32 of them, half done, are 8,300 tokens with their prompts.
    return replace(piecewise(MEMORY, question, _scaled(steps, scale)), new_tokens=(320, 480))


def _sweep(scale: Scale) -> Scenario:
    rates = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0)
    steps = [(f"{rate * scale.rate:g}/s", 14.0, rate) for rate in rates]
    return piecewise("sweep", "the paper's sweep of arrival rates", _scaled(steps, scale))


def _day(scale: Scale) -> Scenario:
    seconds, low, high = 4 * scale.seconds(24.0), 0.2 * scale.rate, 5.0 * scale.rate
    phases = _phases([(name, seconds / 4) for name in ("night", "noon", "noon", "night")])
    rate = arrivals.day(low, high, seconds)

    def arrive(draw: random.Random) -> list[Arrival]:
        return [Arrival(at) for at in arrivals.varying_poisson(rate, high, seconds, draw)]

    return Scenario("day", "a day's curve, from a trickle to a full machine and back", phases, arrive)


def _bursts(scale: Scale) -> Scenario:
    # What a burst does needs its size, its pause and time to work it off: a shorter load has fewer of them.
    size, number = max(1, round(24 * scale.rate)), max(1, round(4 * scale.time))
    phases = _phases([("between", 12.0), ("burst", 10.0)] * number)

    def arrive(draw: random.Random) -> list[Arrival]:
        times = arrivals.poisson(0.4 * scale.rate, 0.0, phases[-1].end, draw)
        for phase in phases:
            if phase.name == "burst":
                times += arrivals.burst(size, phase.start, 0.5, draw)
        return [Arrival(at) for at in sorted(times)]

    return Scenario("bursts", f"{size} requests within half a second, now and then, over a trickle", phases, arrive)


def _clients(scale: Scale) -> Scenario:
    steps = [(15.0, 1), (5.0, 8), (25.0, 24), (5.0, 8), (15.0, 1)]
    return _closed("clients", "a closed loop that swells to 24 clients and shrinks again", steps, scale)


def _fixed(scale: Scale) -> Scenario:
    steps = [(15.0, number) for number in (1, 2, 4, 8, 16, 32)]
    return _closed("fixed", "a closed loop at each of several fixed numbers of clients", steps, scale)


def _closed(name: str, question: str, steps: list[tuple[float, int]], scale: Scale) -> Scenario:
    clients = tuple(Clients(scale.seconds(seconds), max(1, round(n * scale.rate))) for seconds, n in steps)
    labels = [(f"{c.clients} client{'s' * (c.clients > 1)}", c.seconds) for c in clients]
    phases = [replace(phase, clients=c.clients) for phase, c in zip(_phases(labels), clients, strict=True)]
    return Scenario(name, question, tuple(phases), clients=clients)


def _replay(scale: Scale, trace: list[TraceRow]) -> Scenario:
    seconds, parts = 4 * scale.seconds(24.0), 4
    phases = _phases([(f"part {i + 1}", seconds / parts) for i in range(parts)])
    rate = 1.5 * scale.rate

    def arrive(draw: random.Random) -> list[Arrival]:
        return [Arrival(r.at, r.prompt_tokens, r.new_tokens) for r in arrivals.replay(trace, rate, seconds, draw)]

    question = f"a recorded trace, all of it in {seconds:g} s, of its requests {rate:g} a second"
    return Scenario("trace", question, phases, arrive)


def _scaled(steps: list[tuple[str, float, float]], scale: Scale) -> list[tuple[str, float, float]]:
    return [(name, scale.seconds(seconds), rate * scale.rate) for name, seconds, rate in steps]


def _phases(parts: list[tuple[str, float]]) -> tuple[Phase, ...]:
    phases, start = [], 0.0
    for name, seconds in parts:
        phases.append(Phase(name, start, start + seconds))
        start += seconds
    return tuple(phases)
