"""Which runs are made, in which order, and what happens when one can't be. No server is started."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.serve import arms
from bench.serve.order import Run, order
from bench.serve.runner import Bench
from bench.serve.scenarios import catalogue
from bench.serve.servers import ServerFault
from bench.serve.settings import Settings
from bench.serve.store import Store


@dataclass
class NoFleet:
    """Servers that start at once."""

    up: set[str] = field(default_factory=set)
    starts: list[float] = field(default_factory=list)
    side_by_side: bool = False

    def stop(self) -> None:
        self.up = set()

    def get(self, kind: str) -> None:
        self.up = self.up | {kind}


@dataclass
class Planned:
    """A measurement that ends as a test has planned: a result, or what it raises."""

    plan: dict[str, BaseException] = field(default_factory=dict)
    fleet: Any = field(default_factory=NoFleet)
    settings: Settings = field(default_factory=Settings)
    made: list[str] = field(default_factory=list)

    def make(self, run: Run, scenario: Any) -> dict[str, Any]:
        self.made.append(run.name)
        self.fleet.up = {run.arm.server}
        self.fleet.starts.append(0.0)
        if run.name in self.plan:
            raise self.plan[run.name]
        whole = {"tokens_per_s": 100.0, "latency_s": None}
        return {
            "scenario": scenario.name,
            "arm": run.arm.name,
            "repetition": run.repetition,
            "whole": whole,
            "faults": [],
        }


RUNS = order(["surge"], [arms.make(name) for name in ("none", "static-1", "static-3", "nightjar")], 2)
NAMES = [run.name for run in RUNS]


def bench(folder: Path, **plan: BaseException) -> tuple[Bench, Planned, list[str]]:
    store, planned, said = Store(folder), Planned({name.replace("__", "."): e for name, e in plan.items()}), []
    store.open(Settings().as_json())
    return Bench(store, catalogue(), planned, said.append), planned, said  # type: ignore[arg-type]


def test_an_interrupted_benchmark_goes_on(tmp_path: Path) -> None:
    first, planned, said = bench(tmp_path)
    planned.plan = {NAMES[3]: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        first.run(RUNS)
    assert planned.made == NAMES[:4]
    # What was interrupted is made again, from its beginning.
    second, planned, said = bench(tmp_path)
    second.run(RUNS)
    assert planned.made == NAMES[3:] and said[0] == "3 of 8 runs are there already"
    assert said[1].startswith("starting a server") and "[1/5] surge" in said[2] and " left" in said[2]
    assert "left" not in said[-1] and len(list(second.store.all())) == 8


def test_what_can_not_be_made_is_left_out(tmp_path: Path) -> None:
    made, planned, said = bench(tmp_path)
    planned.plan = {NAMES[1]: ServerFault("the server refuses"), NAMES[4]: OSError("gone")}
    made.run(RUNS)
    assert made.left_out == [NAMES[1], NAMES[4]] and planned.made == NAMES
    assert any("could not be made: the server refuses" in line for line in said)
    again, planned, _ = bench(tmp_path)
    again.run(RUNS)
    assert planned.made == [NAMES[1], NAMES[4]] and again.left_out == []


def test_three_failures_in_a_row_are_enough(tmp_path: Path) -> None:
    made, planned, _ = bench(tmp_path)
    planned.plan = {name: RuntimeError("the server ended with 1") for name in NAMES[2:]}
    with pytest.raises(RuntimeError, match="ended with 1"):
        made.run(RUNS)
    assert planned.made == NAMES[:5] and len(list(made.store.all())) == 2


def test_no_run_is_begun_that_would_not_end_in_time(tmp_path: Path) -> None:
    made, planned, said = bench(tmp_path)
    began = time.monotonic()
    made.run(RUNS, within_s=60)
    assert planned.made == [] and "the same command goes on, with 8 runs" in said[-1]
    made.run(RUNS, within_s=200)
    # Each run is expected to take its load at least, and none really did.
    assert planned.made == NAMES and time.monotonic() - began < 30


def test_every_repetition_has_servers_of_its_own(tmp_path: Path) -> None:
    made, planned, said = bench(tmp_path)
    up: list[set[str]] = []
    make = planned.make

    def watched(run: Run, scenario: Any) -> dict[str, Any]:
        up.append(planned.fleet.up)
        return make(run, scenario)

    planned.make = watched  # type: ignore[method-assign]
    made.run(RUNS)
    # none | three on one server || three on another one | none
    assert [run.arm.server for run in RUNS] == ["plain", *["steered"] * 6, "plain"]
    assert up == [set(), {"plain"}, {"steered"}, {"steered"}, set(), {"steered"}, {"steered"}, {"steered"}]
    assert said.count("starting a server: steered") == 2


def test_side_by_side_no_server_is_ever_alone(tmp_path: Path) -> None:
    made, planned, _ = bench(tmp_path)
    planned.fleet.side_by_side = True
    up: list[set[str]] = []
    make = planned.make

    def watched(run: Run, scenario: Any) -> dict[str, Any]:
        up.append(planned.fleet.up)
        result = make(run, scenario)
        planned.fleet.up = up[-1]
        return result

    planned.make = watched  # type: ignore[method-assign]
    made.run(RUNS)
    assert up and all(servers == {run.arm.server for run in RUNS} for servers in up)
