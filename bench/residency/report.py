"""Figures of bench/residency from raw records, and its table; nothing here runs a server."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from sglang_nightjar.core.messages import Residency, Telemetry

#: At rest with γ=0: what transitions are compared with.
RESTS = (Residency.PARKED, Residency.OFFLOADED)
MOVES = (Residency.OFFLOADING, Residency.SHRINKING, Residency.LOADING, Residency.CATCHING_UP)


def stalls(records: Iterable[Telemetry], batch_size: int) -> list[dict[str, Any]]:
    """Iterations of γ=0 at ``batch_size`` that no prefill shared: (state, ms) each."""
    return [
        {"state": Residency(record.residency).name, "ms": record.iteration_ns / 1e6}
        for record in records
        if record.batch_size == batch_size and record.gamma == 0 and record.prefill_tokens == 0
    ]


def by_state(iterations: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Count, median and longest iteration of each state, and the longest over the median at rest."""
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
        "longest_ms": max(values),
        "longest_over_rest": max(values) / base,
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    memory, predicted = result["memory"], result["predicted"]
    lines = [
        f"Draft: {memory['draft_bytes'] / 1e6:.1f} MB; resident set of the scheduler smaller by "
        f"{memory['freed_resident_bytes'] / 1e6:.1f} MB ({memory['freed_resident_bytes'] / memory['draft_bytes']:.0%}) "
        f"without it; {memory['tokens']} tokens more, predicted {predicted['tokens']}.",
        "",
        "| iterations of 8 requests | count | median | longest | longest / median at rest |",
        "| --- | --- | --- | --- | --- |",
    ]
    for state, figures in by_state(result["stalls"]).items():
        lines.append(
            f"| {state} | {figures['count']} | {figures['median_ms']:.1f} ms | {figures['longest_ms']:.1f} ms | "
            f"{figures['longest_over_rest']:.2f} |"
        )
    lines += ["", "| draft, γ=0 | KV tokens | batch, mean | throughput | retractions per surge |"]
    lines.append("| --- | --- | --- | --- | --- |")
    rates = {}
    for arm in ("device", "host"):
        runs = [run for run in result["surges"] if run["arm"] == arm]
        rates[arm] = [run["rate"] for run in runs]
        lines.append(
            f"| {arm} | {runs[0]['capacity']} | {statistics.mean(run['mean_batch'] for run in runs):.1f} | "
            f"{statistics.median(rates[arm]):.1f} tok/s "
            f"({min(rates[arm]):.1f} to {max(rates[arm]):.1f}) | "
            f"{statistics.mean(run['retractions'] for run in runs):.1f} |"
        )
    ratios = [away / here for here, away in zip(rates["device"], rates["host"], strict=True)]
    lines += ["", f"Throughput away / here: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})."]
    return "\n".join(lines)
