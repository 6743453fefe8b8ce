"""What was to be shown of a policy of ours, and what came out; losses included."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.serve.arms import NONE, OURS, SGLANG_ADAPTIVE
from bench.serve.paired import Ratio, mean_and_half, ratio
from bench.serve.results import Figure, Results, phase_speed, speed
from bench.serve.tables import table

#: Against whom how much has to be gained on average, and where that figure comes from.
_GOALS = {NONE: (0.27, "the paper's 27.29%"), "static-3": (0.083, "the paper's 8.32%"), SGLANG_ADAPTIVE: (0.05, "")}
_BEST_STATIC, _GOAL_AGAINST_BEST = "the best static γ known afterwards", 0.03
_WORST_PHASE = -0.02
#: Less than this is shown as nothing.
_NOISE = 0.0005
#: Not dynamic: every phase is a load of its own.
_NOT_DYNAMIC = ("fixed", "sweep")


def subjects(results: Results) -> list[str]:
    """The arms that claim something, with and without parameters, and that can be compared with another one."""
    return [
        arm
        for arm in results.labels
        if arm.partition(":")[0].partition("+")[0] in OURS
        and any(arm in (arms := results.arms(s)) and len(arms) > 1 for s in results.scenarios)
    ]


def claim(results: Results, subject: str) -> str:
    """The goals, and what came out, in Markdown; arms without a goal too."""
    dynamic = [s for s in results.scenarios if subject in results.arms(s) and s not in _NOT_DYNAMIC]
    rows = []
    for other, label in results.labels.items():
        if other != subject and (gains := _gains(results, subject, {s: other for s in dynamic})):
            goal, source = _GOALS.get(other, (None, ""))
            rows.append([label, *_row(gains, goal, source)])
    best = {s: fixed for s in dynamic if (fixed := best_static(results, s))}
    if gains := _gains(results, subject, best):
        rows.append([_BEST_STATIC, *_row(gains, _GOAL_AGAINST_BEST)])
    rows += _worst_phase(results, subject)
    return table([f"{subject} against", "goal", "mean over the dynamic loads", "", "by load"], rows)


def losses(results: Results, subject: str) -> list[str]:
    """Phases in which the subject loses, the worst first, in Markdown: all that are worse than without speculation, and
    those that are more than 2% worse than with SGLang's own rule, or than with the best static γ of the load."""
    best = {s: fixed for s in results.scenarios if (fixed := best_static(results, s)) not in (None, NONE)}
    lines = []
    for others in (dict.fromkeys(results.scenarios, NONE), dict.fromkeys(results.scenarios, SGLANG_ADAPTIVE), best):
        for where, one in sorted(_phase_ratios(results, subject, others).items(), key=lambda item: item[1].gain):
            other = others[one.scenario]
            against = "" if other == NONE else f" against {results.labels[other]}"
            if one.gain < (-_NOISE if other == NONE else _WORST_PHASE):
                mark = " **(more than allowed)**" if other == NONE and one.gain < _WORST_PHASE else ""
                lines.append(f"- {where}{against}: {one.gain:+.1%}, {one.speeds}{mark}")
    return lines


def mean_gain(results: Results, subject: str, other: str) -> float | None:
    """Over the dynamic loads that both have; None without any."""
    found = _gains(results, subject, dict.fromkeys((s for s in results.scenarios if s not in _NOT_DYNAMIC), other))
    return found.mean if found else None


def gain(results: Results, scenario: str, ours: str, theirs: str) -> float:
    """What is gained: more throughput in a closed loop, less mean latency in an open one; both as a fraction.

    ×1.083 in speed is +8.3% throughput, but 7.7% less latency: of the two readings of a goal this is the stricter.
    """
    return _gain(results, scenario, _ratio(results, scenario, ours, theirs, speed).value)


def _gain(results: Results, scenario: str, ratio_of_speeds: float) -> float:
    return 1 - 1 / ratio_of_speeds if results.is_open(scenario) else ratio_of_speeds - 1


def best_static(results: Results, scenario: str) -> str | None:
    """The fixed γ, 0 included, that was the fastest in this scenario, over the repetitions that all of them have; None
    if only one γ was tried."""
    fixed = [arm for arm in results.arms(scenario) if arm in (NONE, "off") or "static-" in arm]
    speeds = {arm: results.by_repetition(scenario, arm, speed) for arm in fixed}
    common = set.intersection(*map(set, speeds.values())) if speeds else set()
    if not common or not any("static-" in arm for arm in fixed):
        return None
    return max(fixed, key=lambda arm: math.prod(speeds[arm][number] for number in common))


@dataclass(frozen=True)
class _Gains:
    """By scenario; and the mean over scenarios of each repetition that all of them have."""

    by_scenario: dict[str, float]
    means: list[float]

    @property
    def mean(self) -> float:
        """Over scenarios."""
        return sum(self.by_scenario.values()) / len(self.by_scenario)


def _gains(results: Results, subject: str, others: dict[str, str]) -> _Gains | None:
    """Against ``others``, an arm for each scenario; None where there is no repetition in common with any."""
    found: dict[str, dict[int, float]] = {}
    for scenario, other in others.items():
        ours, theirs = (results.by_repetition(scenario, arm, speed) for arm in (subject, other))
        if common := {n: _gain(results, scenario, ours[n] / theirs[n]) for n in ours if theirs.get(n)}:
            found[scenario] = common
    if not found:
        return None
    shared = set.intersection(*(set(one) for one in found.values()))
    means = [sum(one[n] for one in found.values()) / len(found) for n in sorted(shared)]
    return _Gains({s: gain(results, s, subject, others[s]) for s in found}, means)


def _row(gains: _Gains, goal: float | None, source: str = "") -> list[str]:
    by_scenario, mean = gains.by_scenario, gains.mean
    _, half = mean_and_half(gains.means)
    shown = f"{mean:+.1%}" + ("" if math.isnan(half) else f" ± {half:.1%}")
    wanted = "–" if goal is None else f"+{goal:.1%}" + (f" ({source})" if source else "")
    verdict = "" if goal is None else _verdict(mean, mean - half, goal)
    return [wanted, shown, verdict, ", ".join(f"{name} {value:+.1%}" for name, value in by_scenario.items())]


def _worst_phase(results: Results, subject: str) -> list[list[str]]:
    """Where the subject is worst against no speculation, over all phases of all loads."""
    found = _phase_ratios(results, subject, dict.fromkeys(results.scenarios, NONE))
    if not found:
        return []
    where, worst = min(found.items(), key=lambda item: round(item[1].gain, 4))
    verdict = _verdict(worst.gain, _gain(results, worst.scenario, worst.speeds.low), _WORST_PHASE)
    shown = f"{where}, {worst.speeds}"
    return [["no speculation, in the worst phase", f"{_WORST_PHASE:+.0%}", f"{worst.gain:+.1%}", verdict, shown]]


def _verdict(value: float, low: float, goal: float) -> str:
    """``low`` is the lower end of the interval, NaN if there is none."""
    if value < goal:
        return "**missed**"
    return "met" if low >= goal else "met, not for certain"


@dataclass(frozen=True)
class _Phase:
    """What the subject gains in a phase of ``scenario``, and the ratio of speeds."""

    scenario: str
    gain: float
    speeds: Ratio


def _phase_ratios(results: Results, subject: str, others: dict[str, str]) -> dict[str, _Phase]:
    """Against ``others``, an arm for each scenario: by phase."""
    found = {}
    for scenario, other in others.items():
        for name in results.phases(scenario):
            one = _ratio(results, scenario, subject, other, phase_speed(name))
            if not math.isnan(one.value):
                found[f"{scenario}, {name}"] = _Phase(scenario, _gain(results, scenario, one.value), one)
    return found


def _ratio(results: Results, scenario: str, ours: str, theirs: str, figure: Figure) -> Ratio:
    return ratio(*(results.by_repetition(scenario, arm, figure) for arm in (ours, theirs)))
