"""The same loads on simulated servers: ``python -m bench.serve.simulated``. Nothing in its output was measured.

Requests, times and lengths are those of the benchmark, warm-up included. What a simulated server is, and how true:
docs/simulator.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from bench.provenance import provenance
from bench.serve import arms, measures, tables
from bench.serve.arms import NONE, SGLANG_ADAPTIVE
from bench.serve.claim import claim
from bench.serve.job import Answer, Job
from bench.serve.measures import Objectives
from bench.serve.prompts import PromptSource
from bench.serve.report import HOW_TO_READ
from bench.serve.results import Results
from bench.serve.scenarios import Scale, Scenario, catalogue, warm_up
from bench.serve.settings import Settings, make_job
from sglang_nightjar.policy import loader
from sglang_nightjar.sim.builtin import builtin
from sglang_nightjar.sim.loads import NEVER, ClosedLoop, LoadSettings, OpenLoop, Request
from sglang_nightjar.sim.setup import Setup
from sglang_nightjar.sim.world import simulate

_OUT = Path(__file__).parent / "results" / "simulated.md"
SCENARIOS = ("surge", "clients", "bursts", "day")
#: The γ of the most expected tokens per second for each batch, by someone who knows costs and acceptance: what any
#: policy could gain.
ORACLE = "oracle"
_ARMS = (NONE, "static-1", "static-2", "static-3", "static-5", SGLANG_ADAPTIVE, "nightjar", "model", ORACLE)
#: What stands for arms that are no policies.
_STAND_INS = {NONE: "off", SGLANG_ADAPTIVE: "ema"}
#: s between warm-up and load, in which the last answers of the warm-up end.
_REST = 60
#: Tokens between two points of an answer's course; the simulator only says when the first and the last were there.
_PIECE = 8


@dataclass(frozen=True)
class Machine:
    """A simulated server, and how many times the load for the demo pair it gets: so many that the surge is what it can
    do without speculation, as there; and as many more clients as it runs more requests at a time. One without AMX gets
    them whole, and half of them: with AVX2 it can't do more, with AVX-512 that is half of what it can do.

    ``server`` is its name in `sglang_nightjar.sim.builtin`, if that is another one.

    ``idle_draft_ns`` is what an iteration at γ=0 takes longer than one of a server that has no draft
    (bench/off_path/README.md).
    """

    name: str
    rate: float
    clients: float
    idle_draft_ns: float = 0.0
    server: str = ""

    def setup(self) -> Setup:
        return builtin(self.server or self.name)

    def scenarios(self, time_scale: float) -> dict[str, Scenario]:
        """By name."""
        open_, closed = (catalogue(Scale(time_scale, scale)) for scale in (self.rate, self.clients))
        return {name: open_[name] if open_[name].is_open else closed[name] for name in open_}


MACHINES = (
    Machine("demo-amx", 1.0, 1.0, 1_000_000),
    Machine("demo-avx2", 1.0, 1.0, 1_000_000),
    Machine("demo-avx2-half", 0.5, 0.5, 1_000_000, "demo-avx2"),
    Machine("demo-avx512", 1.0, 1.0, 1_000_000),
    Machine("demo-avx512-half", 0.5, 0.5, 1_000_000, "demo-avx512"),
    # Not measured yet.
    Machine("h200-8b", 48.0, 8.0),
)


class _Clients(ClosedLoop):
    """A closed loop of given requests, from a moment on."""

    def __init__(self, job: Job, kinds: Sequence[int], start_s: float = 0.0) -> None:
        phases = [(start_s, 0.0)] * (start_s > 0) + [(c.seconds, float(c.clients)) for c in job.clients]
        super().__init__(LoadSettings(clients=tuple(phases)), np.ones(1), np.random.default_rng(0))
        self._bodies = cycle([(len(r.prompt), r.new_tokens, k) for r, k in zip(job.requests, kinds, strict=True)])


class _Load:
    """A warm-up, and after it the load, of which it keeps every request. As `OpenLoop`."""

    def __init__(self, warm: Job, job: Job, shares: np.ndarray) -> None:
        self._start = int((warm.seconds + _REST) * 1e9)
        self._warm_up = _Clients(warm, _kinds(warm, shares))
        kinds = _kinds(job, shares)
        self._load: OpenLoop | ClosedLoop = (
            _Clients(job, kinds, self._start / 1e9)
            if job.clients
            else OpenLoop(
                Request(self._start + int(r.at * 1e9), len(r.prompt), r.new_tokens, kind, r.new_tokens)
                for r, kind in zip(job.requests, kinds, strict=True)
            )
        )
        self._made: list[Request] = []

    @property
    def next_at(self) -> int:
        return min(self._warm_up.next_at, self._load.next_at)

    def pop(self) -> Request:
        if self._warm_up.next_at < NEVER:
            return self._warm_up.pop()
        self._made.append(request := self._load.pop())
        return request

    def finished(self, now_ns: int) -> None:
        (self._warm_up if now_ns < self._start else self._load).finished(now_ns)

    def answers(self) -> list[Answer]:
        """As if a client had seen them."""
        return [self._answer(index, request) for index, request in enumerate(self._made)]

    def _answer(self, index: int, request: Request) -> Answer:
        due, first, last = ((ns - self._start) / 1e9 for ns in (request.arrival_ns, request.first_ns, request.end_ns))
        if not request.end_ns:
            return Answer(index, due, due, error="refused")
        counts = [*range(1, request.total, _PIECE), request.total]
        share = (last - first) / max(1, request.total - 1)
        pieces = [(first + share * (count - 1), count) for count in counts]
        return Answer(index, due, due, pieces, last, [0] * request.total, "length")


def _kinds(job: Job, shares: np.ndarray) -> list[int]:
    """The class of each request, the same for every arm."""
    return np.random.default_rng(len(job.requests)).choice(len(shares), len(job.requests), p=shares).tolist()


def run(machine: Machine, setup: Setup, scenario: Scenario, name: str, repetition: int, jobs: tuple[Job, Job]) -> Any:
    """One run, with what the reports' tables need of it; ``jobs`` are the warm-up and the load."""
    settings, arm = Settings(), arms.make("off" if name == ORACLE else name)
    if name == NONE:
        setup = without_draft(setup, machine.idle_draft_ns)
    chosen = arm.policy or {"name": _STAND_INS[name], "params": {}}
    policy = loader.make(chosen["name"], None, chosen["params"], repetition)
    load = _Load(*jobs, setup.acceptance.shares())
    # It ends with the last answer.
    rates, oracle = LoadSettings(rates=((1.0, 0.0),)), name == ORACLE
    result = simulate(setup, rates, policy, repetition, drain=True, source=load, oracle=oracle)  # type: ignore[arg-type]
    answers, objectives = load.answers(), Objectives(settings.slo_ttft_s, settings.slo_tpot_s)
    return {
        "run": f"{machine.name}.{scenario.name}.{name}.{repetition}",
        "scenario": scenario.name,
        "arm": name,
        "label": _label(name, arm),
        "repetition": repetition,
        "open_loop": scenario.is_open,
        "phases": [asdict(phase) for phase in scenario.phases],
        "began": 0.0,
        "faults": [{"kind": "arm", "text": "refused a request"}] if result.refused else [],
        **measures.figures(answers, scenario.phases, objectives),
        "shares": result.shares,
    }


def without_draft(setup: Setup, idle_draft_ns: float) -> Setup:
    """The server when no draft is loaded: `Setup`'s costs are those of one that has one."""
    table = tuple((rows, ns - idle_draft_ns) for rows, ns in setup.costs.target)
    return replace(setup, costs=replace(setup.costs, target=table))


def _label(name: str, arm: arms.Arm) -> str:
    if name == ORACLE:
        return "the oracle"
    return arm.label if arm.policy or name == NONE else f"{arm.label} (`ema`)"


def section(machine: Machine, names: Sequence[str], repetitions: int, time_scale: float, source: PromptSource) -> str:
    """All runs on one machine, and their tables in Markdown."""
    setup, runs = machine.setup(), []
    settings = replace(Settings(), max_running_requests=setup.engine.max_running)
    scenarios = machine.scenarios(time_scale)
    warm = make_job(warm_up(settings.warm_up_s, settings.max_running_requests), 0, settings, source, "")
    for name in SCENARIOS:
        for repetition in range(repetitions):
            jobs = (warm, make_job(scenarios[name], repetition, settings, source, ""))
            runs += [run(machine, setup, scenarios[name], arm, repetition, jobs) for arm in names]
    results = Results(runs)
    parts = [
        f"## {machine.name}",
        f"Server: {setup.source}. {machine.rate:g} times the requests and {machine.clients:g} times the clients of the "
        f"loads for the demo pair, at most {settings.max_running_requests} requests at a time. "
        + (
            f"Without a draft an iteration is {machine.idle_draft_ns / 1e6:g} ms shorter than at γ=0 with one."
            if machine.idle_draft_ns
            else "What γ=0 costs against no draft is not known and left out."
        ),
    ]
    parts += [claim(results, arm) for arm in ("nightjar", "model", ORACLE) if arm in names]
    for name in results.scenarios:
        what = "Mean latency, s" if results.is_open(name) else "Tokens per second"
        parts += [f"### {name}, simulated", tables.against_none(results, name)]
        parts += [f"{what}, by phase, and the ratio of speeds to no speculation:", tables.phases(results, name)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", nargs="+", default=[m.name for m in MACHINES], choices=[m.name for m in MACHINES])
    parser.add_argument("--arms", nargs="+", default=_ARMS, choices=_ARMS)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--time-scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=_OUT)
    args = parser.parse_args()
    from sglang_nightjar.demo.pair import ensure_pair

    source = PromptSource("own", Path(ensure_pair().target), Settings().longest_prompt)
    origin = provenance()
    parts = [
        "# The benchmark's loads, simulated",
        "**Nothing here was measured.** The loads of [the benchmark](../README.md), request by request, on servers of "
        "[the simulator](../../../docs/simulator.md), which says how true it is. What stands for "
        f"`--speculative-adaptive` is our `ema`, which follows its rule. {args.repetitions} repetitions"
        + (f", {args.time_scale:g} times as long" if args.time_scale != 1 else "")
        + f". Commit {origin['commit']}; `{origin['command']}`.",
        HOW_TO_READ,
    ]
    chosen = [machine for machine in MACHINES if machine.name in args.machines]
    parts += [section(m, args.arms, args.repetitions, args.time_scale, source) for m in chosen]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n\n".join(parts) + "\n")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
