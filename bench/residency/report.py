"""Figures of bench/residency from raw records, and its tables; nothing here runs a server."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from sglang_nightjar.core.messages import Residency, Telemetry

#: At rest with γ=0: what transitions are compared with.
RESTS = (Residency.PARKED, Residency.OFFLOADED)
MOVES = (Residency.OFFLOADING, Residency.SHRINKING, Residency.LOADING, Residency.CATCHING_UP)
#: No iteration of a transition shall take longer than so many times the median at rest.
BOUND = 1.5


def stalls(records: Iterable[Telemetry], batch_size: int) -> list[dict[str, Any]]:
    """Iterations of γ=0 at ``batch_size`` that no prefill shared: (state, ms) each."""
    return [
        {"state": Residency(record.residency).name, "ms": record.iteration_ns / 1e6}
        for record in records
        if record.batch_size == batch_size and record.gamma == 0 and record.prefill_tokens == 0
    ]


def by_state(iterations: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Count, median and longest iteration of each state, also over the median at rest; and how many are above BOUND."""
    rest = [one["ms"] for one in iterations if one["state"] in {state.name for state in RESTS}]
    if not rest:
        return {}
    base = statistics.median(rest)
    found = {"at rest": _figures(rest, base)}
    for state in MOVES:
        if own := [one["ms"] for one in iterations if one["state"] == state.name]:
            found[state.name] = _figures(own, base)
    return found


def _figures(values: list[float], base: float) -> dict[str, float]:
    return {
        "count": len(values),
        "median_ms": statistics.median(values),
        "median_over_rest": statistics.median(values) / base,
        "longest_ms": max(values),
        "longest_over_rest": max(values) / base,
        "above_bound": sum(value > BOUND * base for value in values),
    }


def predicted_gain(here: list[dict[str, Any]], extra_tokens: int, requests: int) -> float | None:
    """By how much the rate would rise with ``extra_tokens``, from surges with the draft ``here`` alone.

    More tokens let more requests run in proportion, up to all; a line through the iteration's time by batch size says
    what that is worth. The end of a surge, prompts and retracted work are left out. None without two batch sizes.
    """
    times: dict[int, list[float]] = {}
    for run in here:
        for size, ms in run["ms_by_batch"].items():
            times.setdefault(int(size), []).append(ms)
    if len(times) < 2:
        return None
    slope, fixed = statistics.linear_regression(list(times), [statistics.median(found) for found in times.values()])
    batch = statistics.mean(run["batch_while_queued"] for run in here)
    more = min(requests, batch * (1 + extra_tokens / here[0]["capacity"]))
    return (more / (fixed + slope * more)) / (batch / (fixed + slope * batch))


def stall_table(iterations: list[dict[str, Any]], batch_size: int) -> list[str]:
    """Lines of Markdown about what `stalls` found."""
    lines = [
        f"| iterations of {batch_size} requests | count | median | ÷ median at rest | longest | ÷ median at rest | "
        f"above {BOUND} |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for state, found in by_state(iterations).items():
        lines.append(
            f"| {state} | {found['count']} | {found['median_ms']:.1f} ms | {found['median_over_rest']:.2f} | "
            f"{found['longest_ms']:.1f} ms | {found['longest_over_rest']:.2f} | {found['above_bound']} |"
        )
    return lines


def surge_table(surges: list[dict[str, Any]], extra_tokens: int, requests: int) -> list[str]:
    """Lines of Markdown about surges with the draft here and away; one run of each arm makes a pair."""
    lines = [
        "| draft, γ=0 | KV tokens | batch, mean | throughput, median (range) | retractions per surge |",
        "| --- | --- | --- | --- | --- |",
    ]
    by_arm = {arm: [run for run in surges if run["arm"] == arm] for arm in ("device", "host")}
    for arm, runs in by_arm.items():
        rates = [run["rate"] for run in runs]
        lines.append(
            f"| {arm} | {runs[0]['capacity']} | {statistics.mean(run['mean_batch'] for run in runs):.1f} | "
            f"{statistics.median(rates):.1f} tok/s ({min(rates):.1f} to {max(rates):.1f}) | "
            f"{statistics.mean(run['retractions'] for run in runs):.1f} |"
        )
    ratios = [away["rate"] / here["rate"] for here, away in zip(by_arm["device"], by_arm["host"], strict=True)]
    predicted = predicted_gain(by_arm["device"], extra_tokens, requests)
    lines += [
        "",
        f"Throughput away / here: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), "
        f"predicted {'nothing' if predicted is None else f'{predicted:.3f}'}.",
    ]
    return lines


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    memory, predicted = result["memory"], result["predicted"]
    return "\n".join(
        [
            f"Draft: {memory['draft_bytes'] / 1e6:.1f} MB; resident set of the scheduler smaller by "
            f"{memory['freed_resident_bytes'] / 1e6:.1f} MB "
            f"({memory['freed_resident_bytes'] / memory['draft_bytes']:.0%}) "
            f"without it; {memory['tokens']} tokens more, predicted {predicted['tokens']}.",
            "",
            *stall_table(result["stalls"], 8),
            "",
            *surge_table(result["surges"], predicted["tokens"], result["requests"]),
        ]
    )
