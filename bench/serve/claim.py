"""What was to be shown of a policy of ours, and what came out; losses included."""

from __future__ import annotations

import math

from bench.serve.arms import NONE, SGLANG_ADAPTIVE
from bench.serve.paired import Ratio, ratio
from bench.serve.results import Figure, Results, phase_speed, speed
from bench.serve.tables import table

#: Policies that claim something; the others are there to be compared with.
_OURS = ("model", "nightjar")
#: Against whom how much has to be gained on average, and where that figure comes from.
_GOALS = {NONE: (0.27, "the paper's 27.29%"), "static-3": (0.083, "the paper's 8.32%"), SGLANG_ADAPTIVE: (0.05, "")}
_BEST_STATIC, _GOAL_AGAINST_BEST = "the best static γ known afterwards", 0.03
_WORST_PHASE = -0.02
#: Not dynamic: every phase is a load of its own.
_NOT_DYNAMIC = ("fixed", "sweep")


def subjects(results: Results) -> list[str]:
    """The arms that claim something, with and without parameters, and that can be compared with another one."""
    return [
        arm
        for arm in results.labels
        if arm.partition(":")[0].partition("+")[0] in _OURS
        and any(arm in (arms := results.arms(s)) and len(arms) > 1 for s in results.scenarios)
    ]


def claim(results: Results, subject: str) -> str:
    """The goals, and what came out, in Markdown; arms without a goal too."""
    scenarios = [s for s in results.scenarios if subject in results.arms(s)]
    dynamic = [s for s in scenarios if s not in _NOT_DYNAMIC]
    rows = []
    for other, label in results.labels.items():
        if other != subject and (gains := _gains(results, subject, {s: other for s in dynamic})):
            goal, source = _GOALS.get(other, (None, ""))
            rows.append([label, *_row(gains, goal, source)])
    best = {s: fixed for s in dynamic if (fixed := best_static(results, s))}
    if gains := _gains(results, subject, best):
        rows.append([_BEST_STATIC, *_row(gains, _GOAL_AGAINST_BEST)])
    rows += _worst_phase(results, subject, scenarios)
    return table([f"{subject} against", "goal", "mean over the dynamic loads", "", "by load"], rows)


def gain(results: Results, scenario: str, ours: str, theirs: str) -> float:
    """What is gained: more throughput in a closed loop, less mean latency in an open one; both as a fraction."""
    value = _ratio(results, scenario, ours, theirs, speed).value
    return 1 - 1 / value if results.is_open(scenario) else value - 1


def best_static(results: Results, scenario: str) -> str | None:
    """The fixed γ, 0 included, that was the fastest in this scenario."""
    fixed = [arm for arm in results.arms(scenario) if arm in (NONE, "off") or "static-" in arm]
    return max(fixed, key=lambda arm: results.mean(scenario, arm, speed), default=None)


def _gains(results: Results, subject: str, others: dict[str, str]) -> dict[str, float]:
    """By scenario; left out where the two have no repetition in common."""
    found = {scenario: gain(results, scenario, subject, other) for scenario, other in others.items()}
    return {scenario: value for scenario, value in found.items() if not math.isnan(value)}


def _row(gains: dict[str, float], goal: float | None, source: str = "") -> list[str]:
    mean = sum(gains.values()) / len(gains)
    wanted = "–" if goal is None else f"+{goal:.1%}" + (f" ({source})" if source else "")
    verdict = "" if goal is None else "met" if mean >= goal else "**missed**"
    return [wanted, f"{mean:+.1%}", verdict, ", ".join(f"{name} {value:+.1%}" for name, value in gains.items())]


def _worst_phase(results: Results, subject: str, scenarios: list[str]) -> list[list[str]]:
    """Where the subject is worst against no speculation, over all phases of all loads."""
    ratios = {
        f"{s}, {name}": _ratio(results, s, subject, NONE, phase_speed(name))
        for s in scenarios
        for name in results.phases(s)
    }
    found = {where: value for where, value in ratios.items() if not math.isnan(value.value)}
    if not found:
        return []
    where, worst = min(found.items(), key=lambda item: item[1].value)
    change = worst.value - 1
    met = "met" if change >= _WORST_PHASE else "**missed**"
    return [["no speculation, in the worst phase", f"{_WORST_PHASE:+.0%}", f"{change:+.1%}", met, f"{where} {worst}"]]


def _ratio(results: Results, scenario: str, ours: str, theirs: str, figure: Figure) -> Ratio:
    return ratio(*(results.by_repetition(scenario, arm, figure) for arm in (ours, theirs)))
