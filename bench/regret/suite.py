"""What the policies are put through: servers, loads, and the policies themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from sglang_nightjar.core.policy import Policy
from sglang_nightjar.policy import loader
from sglang_nightjar.sim.acceptance import Acceptance, RequestClass
from sglang_nightjar.sim.builtin import builtin
from sglang_nightjar.sim.loads import Lengths, LoadSettings
from sglang_nightjar.sim.setup import Setup

#: In this order in all tables.
ADAPTIVE = ("model", "nightjar", "ema", "ucb", "goodput")
STATICS = (1, 2, 3, 5)
LEVELS = {"demo-cpu": (1, 2, 3, 4, 6, 8, 16, 32), "h200-8b": (1, 4, 16, 32, 64, 96, 128, 192)}


@dataclass(frozen=True)
class Scenario:
    """A server and a load; ``question`` says what it is for. ``closed``: tokens in a fixed time can be compared."""

    name: str
    question: str
    setup: Setup
    load: LoadSettings
    closed: bool = True


def stationary(server: str, clients: int) -> Scenario:
    """So many clients for ever, with costs and acceptance that stand still."""
    lengths = {"prompt": Lengths(48), "output": Lengths(400, 0.5, 16, 4000)}
    load = LoadSettings(clients=((1e9, float(clients)),), **lengths)
    return Scenario(f"{server}, {clients}", "stationary", builtin(server), load)


def _day(low: int, high: int, seconds: float, steps: int = 24) -> tuple[tuple[float, float], ...]:
    """A cosine of clients, in steps."""
    clients = [round(low + (high - low) * (1 - math.cos(2 * math.pi * i / steps)) / 2) for i in range(steps)]
    return tuple((seconds / steps, float(c)) for c in clients)


def moving() -> list[Scenario]:
    """Loads that move."""
    cpu, gpu = builtin("demo-cpu"), builtin("h200-8b")
    text = {"prompt": Lengths(48, 0.5, 8, 512), "output": Lengths(96, 0.6, 8, 512)}
    chat = {"prompt": Lengths(200, 0.8, 16, 2000), "output": Lengths(200, 0.7, 8, 1500)}
    rates = cpu.acceptance.classes[0].rates
    drop = ((0.0, 1.0), (60.0, 1.0), (61.0, 0.25), (140.0, 0.25), (141.0, 1.0))
    mixed = Acceptance(
        (RequestClass(tuple(min(0.95, 1.25 * r) for r in rates), 0.5), RequestClass(tuple(0.5 * r for r in rates), 0.5))
    )
    parking = replace(
        cpu,
        engine=replace(
            cpu.engine, draft=replace(cpu.engine.draft, parks=True, catch_up_ns=15e6, catch_up_token_ns=60e3)
        ),
    )
    noisy = replace(cpu, costs=replace(cpu.costs, noise=0.15, stalls_per_s=0.4, stall_ns=0.3e9))
    uneven = replace(cpu, costs=replace(cpu.costs, noise=0.05, pace=0.15, pace_s=3.0))
    surge = ((40.0, 1.0), (30.0, 24.0), (40.0, 1.0), (30.0, 24.0), (40.0, 1.0))
    return [
        Scenario("day", "1 to 32 clients and back", cpu, LoadSettings(clients=_day(1, 32, 240.0), **text)),
        Scenario("surge", "1, 24, 1, 24, 1 clients", cpu, LoadSettings(clients=surge, **text)),
        Scenario(
            "bursts", "open loop, 0.6 and 5 requests/s by a Markov chain", cpu,
            LoadSettings(bursts=((0.6, 20.0), (5.0, 6.0)), seconds=240.0, **text), closed=False,
        ),
        Scenario(
            "drop", "4 clients; acceptance falls to a quarter for 80 s and recovers",
            replace(cpu, acceptance=replace(cpu.acceptance, drift=drop)),
            LoadSettings(clients=((240.0, 4.0),), **text),
        ),
        Scenario(
            "unseen", "2 clients, then 20, 5, 32, 10, 15 s each: sizes never seen",
            cpu, LoadSettings(clients=((60.0, 2.0), (15.0, 20.0), (15.0, 5.0), (15.0, 32.0), (15.0, 10.0)), **text),
        ),
        Scenario(
            "mixed", "two kinds of requests, accepted much and little; 1 to 12 clients",
            replace(cpu, acceptance=mixed), LoadSettings(clients=_day(1, 12, 200.0, 10), **text),
        ),
        Scenario(
            "noisy", "the day, with noise of 15% and a stall of 0.3 s every 2.5 s",
            noisy, LoadSettings(clients=_day(1, 32, 240.0), **text),
        ),
        Scenario(
            "uneven", "the surge on a machine that others share: everything 15% faster or slower for some 3 s",
            uneven, LoadSettings(clients=surge, **text),
        ),
        Scenario(
            "parking", "the surge, with a draft that has to catch up after γ=0",
            parking, LoadSettings(clients=surge, **text),
        ),
        Scenario(
            "H200 day", "4 to 224 clients and back; the draft parks",
            gpu, LoadSettings(clients=_day(4, 224, 60.0), **chat),
        ),
    ]  # fmt: skip


def policy(name: str, setup: Setup, seed: int) -> Policy:
    """The policy by its name in the tables: ``static 3`` is γ=3."""
    if name.startswith("static "):
        return loader.make("static", None, {"gamma": int(name.partition(" ")[2])}, seed)
    params: dict[str, Any] = {}
    if name == "goodput":
        # Its sources profile latency offline: it gets the true times of a grid.
        params["profile"] = [
            [size, gamma, 100.0 * size, setup.costs.decode_ns(size, gamma, 100.0 * size)]
            for size in (1, 2, 4, 8, 16, 32, 64, 128, 256)
            if size <= setup.engine.max_running
            for gamma in setup.engine.candidates
        ]
    return loader.make(name, None, params, seed)
