"""The tables of a report, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from bench.serve.arms import NONE
from bench.serve.paired import ratio
from bench.serve.results import Figure, Results, Run, phase_speed, speed, throughput


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " --- |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def number(value: float | None, digits: int = 3) -> str:
    """With so many significant digits; a dash for nothing."""
    if value is None or math.isnan(value):
        return "–"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def of(key: str, statistic: str) -> Figure:
    """A statistic of the whole load, such as ("ttft_s", "p99")."""

    def figure(run: Run) -> float | None:
        return run["whole"][key][statistic] if run["whole"][key] else None

    return figure


def latency_of(phase: str) -> Figure:
    """The mean latency of a phase, s."""

    def figure(run: Run) -> float | None:
        found = run["by_phase"][phase]["latency_s"]
        return found["mean"] if found else None

    return figure


def plain(key: str) -> Figure:
    """A figure of the whole load."""

    def figure(run: Run) -> float | None:
        return run["whole"][key]

    return figure


def against_none(results: Results, scenario: str) -> str:
    """Each arm's figures, and its paired ratio to the arm without speculation."""
    head = ["", "tokens/s", "requests/s", "goodput/s", "latency, mean", "against no speculation"]
    base = results.by_repetition(scenario, NONE, speed)
    counts = {arm: len(results.counted(scenario, arm)) for arm in results.arms(scenario)}
    most = max(counts.values())
    rows = [
        [
            results.labels[arm] + (f" ({counts[arm]} of {most})" if counts[arm] < most else ""),
            number(results.mean(scenario, arm, throughput)),
            number(results.mean(scenario, arm, plain("requests_per_s"))),
            number(results.mean(scenario, arm, plain("goodput_per_s"))),
            number(results.mean(scenario, arm, of("latency_s", "mean"))),
            "1" if arm == NONE else str(ratio(results.by_repetition(scenario, arm, speed), base)),
        ]
        for arm in results.arms(scenario)
    ]
    return table(head, rows)


def felt(results: Results, scenario: str) -> str:
    """What one user feels, s: median and tails of the answers, and of the gaps between pieces of their streams."""
    columns = {"TTFT": "ttft_s", "time per token": "tpot_s", "gap": "gap_s", "latency": "latency_s"}

    def cell(arm: str, key: str) -> str:
        return " / ".join(number(results.mean(scenario, arm, of(key, p))) for p in ("p50", "p95", "p99"))

    rows = [[results.labels[arm], *(cell(arm, key) for key in columns.values())] for arm in results.arms(scenario)]
    return table(["p50 / p95 / p99", *columns], rows)


def phases(results: Results, scenario: str) -> str:
    """What is compared, by phase: mean latency (s) in an open loop, tokens/s in a closed one; and the paired ratio of
    speeds to no speculation."""
    names = results.phases(scenario)
    open_loop = results.is_open(scenario)

    def cell(arm: str, name: str) -> str:
        shown = number(results.mean(scenario, arm, latency_of(name) if open_loop else phase_speed(name)))
        if arm == NONE:
            return shown
        own, base = (results.by_repetition(scenario, a, phase_speed(name)) for a in (arm, NONE))
        return f"{shown}, {ratio(own, base)}"

    def requests(name: str) -> str:
        runs = [run for arm in results.arms(scenario) for run in results.counted(scenario, arm)]
        return number(_mean(run["by_phase"][name]["requests"] for run in runs))

    rows = [[results.labels[arm], *(cell(arm, name) for name in names)] for arm in results.arms(scenario)]
    rows.append(["requests in it, mean", *map(requests, names)])
    return table(["latency, s" if open_loop else "tokens/s", *names], rows)


def server_side(results: Results, scenario: str) -> str:
    """Speculation as the requests and the decision log saw it, and what the policy process took."""
    head = [
        "",
        "accepted length",
        "γ",
        "time by γ",
        "time by the draft's place",
        "switches",
        "retractions",
        "queue",
        "KV used",
        "policy CPU, memory",
    ]
    rows = []
    for arm in results.arms(scenario):
        runs = results.counted(scenario, arm)
        rows.append(
            [
                results.labels[arm],
                number(results.mean(scenario, arm, plain("accepted_length"))),
                number(results.mean(scenario, arm, plain("gamma_per_step"))),
                _time_by(runs, "seconds_by_gamma"),
                _time_by(runs, "seconds_by_residency"),
                number(_mean(_log(run, "gamma_switches") for run in runs)),
                number(_mean(run["whole"]["retractions"] for run in runs)),
                number(_mean(run["server_side"]["load"]["longest_queue"] for run in runs)),
                number(_mean(_kv_used(run) for run in runs), 2),
                _policy_process(runs),
            ]
        )
    return table(head, rows)


def generator(results: Results) -> str:
    """What the load generator itself did, over all runs: lateness and CPU."""
    late = [run["generator"]["late_s"] for run in results.runs if run["generator"]["late_s"]]
    share = [run["generator"]["cpu_s"] / run["generator"]["wall_s"] for run in results.runs]
    lag = max(run["generator"]["worst_lag_s"] for run in results.runs)
    return (
        f"The load generator sent requests {1000 * _median([x['p50'] for x in late]):.1f} ms late (median of the runs' "
        f"medians; worst p99 {1000 * max(x['p99'] for x in late):.0f} ms), stood still for at most "
        f"{1000 * lag:.0f} ms, and used {_median(share):.1%} of a core (at most {max(share):.1%})."
    )


def invalid(results: Results) -> list[str]:
    """A line for each run with a fault."""
    return [
        f"- {run['scenario']}, {results.labels[run['arm']]}, repetition {run['repetition'] + 1}: {fault['text']}"
        + ("; the arm does not count in this scenario" if fault["kind"] == "arm" else "; this run does not count")
        for run in results.faulty()
        for fault in run["faults"]
    ]


def _log(run: Run, key: str) -> Any:
    return run["server_side"].get("log", {}).get(key)


def _time_by(runs: Sequence[Run], key: str) -> str:
    """Shares of the time in decode iterations."""
    total: dict[str, float] = {}
    for run in runs:
        for what, seconds in (_log(run, key) or {}).items():
            total[what] = total.get(what, 0.0) + seconds
    whole = sum(total.values())
    shown = (f"{what.lower()}: {s / whole:.0%}" for what, s in sorted(total.items()) if whole and s / whole >= 0.005)
    return ", ".join(shown) or "–"


def _kv_used(run: Run) -> float | None:
    load = run["server_side"]["load"]
    capacity = max((second["kv_capacity"] for second in load["seconds"]), default=0)
    return load["kv_used_most"] / capacity if capacity else None


def _policy_process(runs: Sequence[Run]) -> str:
    own = [run["server_side"]["processes"].get("policy") for run in runs]
    found = [(o["cpu_s"] / r["generator"]["wall_s"], o["rss_mb"]) for o, r in zip(own, runs, strict=True) if o]
    if not found:
        return "–"
    return f"{_median([cpu for cpu, _ in found]):.1%}, {_median([rss for _, rss in found]):.0f} MB"


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
