"""What the client saw, in figures. Every time is counted from when a request was due, not from when it was sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.serve.job import Answer
from bench.serve.scenarios import Phase


def percentile(values: Sequence[float], q: float) -> float:
    """The ``q``-th percentile (0 to 100), linear between the two nearest; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = (len(ordered) - 1) * q / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summary(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and the percentiles that people ask for; None of nothing."""
    if not values:
        return None
    quantiles = {f"p{q}": percentile(values, q) for q in (50, 95, 99)}
    return {"mean": sum(values) / len(values), **quantiles, "max": max(values)}


def ttft(answer: Answer) -> float:
    """Time to the first token, s."""
    return answer.pieces[0][0] - answer.due


def latency(answer: Answer) -> float:
    """Time to the last token, s."""
    return answer.pieces[-1][0] - answer.due


def tpot(answer: Answer) -> float | None:
    """Time per output token after the first piece, s; None of an answer in one piece."""
    (first, had), (last, has) = answer.pieces[0], answer.pieces[-1]
    return (last - first) / (has - had) if has > had else None


def gaps(answer: Answer) -> list[float]:
    """Times between two pieces of the stream, s: what is felt as stuttering. A piece may hold several tokens."""
    return [after - before for (before, _), (after, _) in zip(answer.pieces, answer.pieces[1:], strict=False)]


def accepted_length(answers: Sequence[Answer]) -> float | None:
    """Tokens per request and verify step, the target's own included; None without a draft.

    An answer's first token comes from its prefill.
    """
    steps = sum(a.verify_steps for a in answers)
    return sum(len(a.tokens) - 1 for a in answers if a.verify_steps) / steps if steps else None


@dataclass(frozen=True)
class Objectives:
    """A request is good if its first token and its time per token are within these, s."""

    ttft_s: float
    tpot_s: float

    def met(self, answer: Answer) -> bool:
        return ttft(answer) <= self.ttft_s and (tpot(answer) or 0.0) <= self.tpot_s


def tokens_between(answers: Sequence[Answer], start: float, end: float) -> int:
    """Tokens that reached the client in [start, end)."""
    total = 0
    for answer in answers:
        had = 0
        for at, has in answer.pieces:
            if start <= at < end:
                total += has - had
            had = has
    return total


def measure(answers: Sequence[Answer], spans: Sequence[tuple[float, float]], objectives: Objectives) -> dict[str, Any]:
    """Figures of the parts ``spans`` of a load, together; speeds are None of no time at all.

    Tokens and requests per second count where they arrived, latencies and objectives where requests were due. Failed
    requests count nowhere.
    """
    good = [a for a in answers if not a.error and a.pieces]
    own = [a for a in good if any(start <= a.due < end for start, end in spans)]
    answered = sum(any(start <= a.pieces[-1][0] < end for start, end in spans) for a in good)
    tokens = sum(tokens_between(good, start, end) for start, end in spans)
    seconds = sum(end - start for start, end in spans)
    per_token = [value for a in own if (value := tpot(a)) is not None]
    met = sum(map(objectives.met, own))
    return {
        "seconds": seconds,
        "requests": len(own),
        "tokens_per_s": tokens / seconds if seconds else None,
        "requests_per_s": answered / seconds if seconds else None,
        "ttft_s": summary([ttft(a) for a in own]),
        "tpot_s": summary(per_token),
        "gap_s": summary([gap for a in own for gap in gaps(a)]),
        "latency_s": summary([latency(a) for a in own]),
        "goodput_per_s": met / seconds if seconds else None,
        "attained": met / len(own) if own else None,
        "accepted_length": accepted_length(own),
    }


def figures(answers: Sequence[Answer], phases: Sequence[Phase], objectives: Objectives) -> dict[str, Any]:
    """`measure` of the ``whole`` load and ``by_phase``, the phases in order of first appearance."""
    spans: dict[str, list[tuple[float, float]]] = {}
    most = max(phase.clients for phase in phases)
    for phase in phases:
        begin = settled(answers, phase, most)
        spans.setdefault(phase.name, []).extend([(begin, phase.end)] * (begin < phase.end))
    return {
        "whole": measure(answers, [(0.0, phases[-1].end)], objectives),
        "by_phase": {name: measure(answers, own, objectives) for name, own in spans.items()},
    }


def settled(answers: Sequence[Answer], phase: Phase, most: int) -> float:
    """When a phase of a closed loop of up to ``most`` clients begins to count: once those that left before it have had
    their last answers. In an open loop from its start: what it finds is part of its load.
    """
    late = [a.ended for a in answers if a.due < phase.start < a.ended and a.request % max(1, most) >= phase.clients]
    return max(late, default=phase.start) if phase.clients else phase.start


def seconds_of(answers: Sequence[Answer], until: float) -> list[dict[str, float]]:
    """Per second of the load: requests that became due, those that were in the machine, tokens that arrived."""
    seconds = [{"at": float(s), "due": 0, "open": 0.0, "tokens": 0} for s in range(max(1, math.ceil(until)))]

    def count(key: str, at: float, amount: float) -> None:
        if 0 <= at < len(seconds):
            seconds[int(at)][key] += amount

    for answer in answers:
        count("due", answer.due, 1)
        had = 0
        for at, has in answer.pieces:
            count("tokens", at, has - had)
            had = has
        for second in range(max(0, int(answer.due)), min(len(seconds), math.ceil(answer.ended))):
            seconds[second]["open"] += max(0.0, min(answer.ended, second + 1) - max(answer.due, second))
    return seconds


def quantiles(answers: Sequence[Answer], of: Callable[[Answer], float | None], steps: int = 100) -> list[float]:
    """Every ``100 / steps``-th percentile from 0 to 100 of a latency, for a picture of its distribution."""
    values = [value for a in answers if not a.error and a.pieces and (value := of(a)) is not None]
    return [percentile(values, 100 * i / steps) for i in range(steps + 1)] if values else []
