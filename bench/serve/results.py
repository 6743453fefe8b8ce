"""All runs of a benchmark, and which of them count."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.serve.arms import OURS
from bench.serve.job import Answer
from bench.serve.measures import Objectives, figures
from bench.serve.scenarios import Phase

Run = dict[str, Any]
Figure = Callable[[Run], float | None]


def throughput(run: Run) -> float | None:
    """Tokens per second that reached the clients during the load."""
    return run["whole"]["tokens_per_s"]


def speed(run: Run) -> float | None:
    """The figure of a scenario that is compared, larger being better.

    In a closed loop throughput. In an open loop tokens come as fast as requests do, unless the machine can't keep up;
    so there it is requests per second of mean latency, the inverse of the mean latency.
    """
    return _speed(run["whole"], run["open_loop"])


def phase_speed(name: str) -> Figure:
    """`speed` of one phase."""

    def figure(run: Run) -> float | None:
        return _speed(run["by_phase"][name], run["open_loop"])

    return figure


def _speed(part: dict[str, Any], open_loop: bool) -> float | None:
    if not open_loop:
        return part["tokens_per_s"] or None
    return 1 / part["latency_s"]["mean"] if part["latency_s"] else None


def _without_answers(run: Run, objectives: Objectives | None) -> Run:
    kept = {key: value for key, value in run.items() if key != "answers"}
    if objectives is None:
        return kept
    answers = [Answer(**{**answer, "pieces": [tuple(p) for p in answer["pieces"]]}) for answer in run["answers"]]
    found = figures(answers, [Phase(**phase) for phase in run["phases"]], objectives)
    return {**kept, "whole": {**kept["whole"], **found["whole"]}, "by_phase": found["by_phase"]}


@dataclass(frozen=True)
class Results:
    """``runs`` are as `runner` made them, with or without their answers."""

    runs: list[Run]

    @classmethod
    def of(cls, runs: Iterable[Run], objectives: Objectives | None = None) -> Results:
        """With ``objectives`` the figures are made anew of the answers: those of a run are of the code that made it."""
        return cls([_without_answers(run, objectives) for run in runs])

    @cached_property
    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(run["scenario"] for run in sorted(self.runs, key=lambda run: run["began"])))

    @cached_property
    def labels(self) -> dict[str, str]:
        """Of each arm, those that are compared with first, ours last."""

        def place(arm: str) -> tuple[bool, bool, bool, str]:
            return arm in OURS, arm != "none", not arm.startswith("static"), arm

        found = {run["arm"]: run["label"] for run in self.runs}
        return {arm: found[arm] for arm in sorted(found, key=place)}

    def arms(self, scenario: str) -> list[str]:
        """Those with runs in it that count, in order of `labels`."""
        return [arm for arm in self.labels if self.counted(scenario, arm)]

    def counted(self, scenario: str, arm: str) -> list[Run]:
        """The runs that count: without a fault, of an arm without a fault of its own in this scenario."""
        own = [run for run in self.runs if run["scenario"] == scenario and run["arm"] == arm]
        if any(fault["kind"] == "arm" for run in own for fault in run["faults"]):
            return []
        return sorted((run for run in own if not run["faults"]), key=lambda run: run["repetition"])

    def by_repetition(self, scenario: str, arm: str, figure: Figure) -> dict[int, float]:
        """A figure of each run that counts and has it."""
        found = {run["repetition"]: figure(run) for run in self.counted(scenario, arm)}
        return {number: value for number, value in found.items() if value is not None}

    def mean(self, scenario: str, arm: str, figure: Figure) -> float:
        """Over repetitions; NaN of none."""
        values = list(self.by_repetition(scenario, arm, figure).values())
        return sum(values) / len(values) if values else math.nan

    def phases(self, scenario: str) -> list[str]:
        return next(list(run["by_phase"]) for run in self.runs if run["scenario"] == scenario)

    def is_open(self, scenario: str) -> bool:
        return next(run["open_loop"] for run in self.runs if run["scenario"] == scenario)

    def apart_s(self, scenario: str) -> float:
        """The longest time between the beginnings of two runs that are compared, s: the machine may have changed."""
        began: dict[int, list[float]] = {}
        for run in self.runs:
            if run["scenario"] == scenario and not run["faults"]:
                began.setdefault(run["repetition"], []).append(run["began"])
        return max((max(found) - min(found) for found in began.values()), default=0.0)

    def faulty(self) -> list[Run]:
        return [run for run in self.runs if run["faults"]]
