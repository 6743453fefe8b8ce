"""Tables of the runs: medians over seeds, and the goals with what was reached."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from bench.regret.suite import ADAPTIVE, LEVELS, STATICS, moving

Runs = dict[tuple[str, str], list[dict[str, Any]]]
#: First and last iteration of what is looked at of a load that stands still; None: to the end.
PARTS = ((0, 300), (300, 1000), (2000, None))


def write_report(lines: list[dict[str, Any]], out: Path) -> str:
    """Writes and returns ``table.md``: of the code that made the last run, and of no other."""
    runs: Runs = defaultdict(list)
    lines = [line for line in lines if line.get("code") == lines[-1].get("code")]
    for line in sorted(lines, key=lambda line: line["seed"]):
        runs[line["scenario"], line["policy"]].append(line)
    text = "\n".join([*_in_short(runs), "", *_stationary(runs), "", *_moving(runs), ""])
    (out / "table.md").write_text(text)
    return text


def loss(run: dict[str, Any], first: int, last: int | None = None) -> float:
    """Share of the oracle's tokens that was lost after iteration ``first``, up to ``last``."""
    history = [(0, 0.0, 0.0), *run["history"]]
    start = next(row for row in history if row[0] >= first)
    end = history[-1] if last is None else next(row for row in history if row[0] >= last)
    return 1 - (end[1] - start[1]) / (end[2] - start[2])


def _in_short(runs: Runs) -> list[str]:
    """What the README shows: medians, and of `model` against what somebody would use otherwise."""
    names = ("off", *ADAPTIVE[1:], "model")
    lines = [f"| scenario | best static γ | {' | '.join(names)} | model against off | the best static γ | the oracle |"]
    lines.append("| --- |" + " --- |" * (len(names) + 4))
    total: dict[str, list[float]] = defaultdict(list)
    for scenario in moving():
        others = ("oracle", *(f"static {gamma}" for gamma in STATICS))
        found = {name: runs.get((scenario.name, name), []) for name in (*names, *others)}
        if not all(found.values()):
            continue
        medians = {name: median(run["efficiency"] for run in of) for name, of in found.items()}
        # In an open loop everybody serves the same requests: mean latency is what differs.
        gains = {gamma: median(_gain(found[f"static {gamma}"], found["off"], scenario.closed)) for gamma in STATICS}
        best = max(gains, key=lambda gamma: gains[gamma])
        medians["best"] = medians[f"static {best}"]
        for name in ("best", *names):
            total[name].append(medians[name])
        cells = [f"{medians['best']:.1%} (γ={best})", *(f"{medians[name]:.1%}" for name in names)]
        for other in ("off", f"static {best}", "oracle"):
            values = [100 * (value - 1) for value in _gain(found["model"], found[other], scenario.closed)]
            cells.append(f"{median(values):+.1f}% ({min(values):+.1f} to {max(values):+.1f})")
        lines.append(f"| {scenario.name}{'' if scenario.closed else ' (mean latency)'} | " + " | ".join(cells) + " |")
    lines.append("| mean | " + " | ".join(f"{_mean(total[name]):.1%}" for name in ("best", *names)) + " | | | |")
    return [*lines, "", *_in_short_stationary(runs)]


def _in_short_stationary(runs: Runs) -> list[str]:
    names = ADAPTIVE[:2]
    heads = [f"{name}: first 300 | 300 to 1000 | last 2000" for name in names]
    lines = ["| server | clients | " + " | ".join(heads) + " |", "| --- | --- |" + " --- |" * 3 * len(names)]
    for server, levels in LEVELS.items():
        for clients in levels:
            found = [runs.get((f"{server}, {clients}", name)) for name in names]
            if all(found):
                parts = [[loss(run, *part) for run in of] for of in found if of for part in PARTS]
                cells = (f"{median(part):.2%} (to {max(part):.1%})" for part in parts)
                lines.append(f"| {server} | {clients} | " + " | ".join(cells) + " |")
    return lines


def _stationary(runs: Runs) -> list[str]:
    lines = [
        "| server, clients | policy | lost, first 300 | lost, 300 to 1000 | lost, last 2000 | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for server, levels in LEVELS.items():
        for clients in levels:
            for name in ADAPTIVE:
                found = runs.get((f"{server}, {clients}", name))
                if found:
                    parts = [[loss(run, *part) for run in found] for part in PARTS]
                    cells = " | ".join(_spread(part) for part in parts)
                    lines.append(f"| {server}, {clients} | {name} | {cells} | {len(found)} |")
    return lines


def _moving(runs: Runs) -> list[str]:
    names = ["off", *(f"static {gamma}" for gamma in STATICS), *ADAPTIVE]
    lines = ["| scenario | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    total: dict[str, list[float]] = defaultdict(list)
    for scenario in moving():
        cells = []
        for name in names:
            found = runs.get((scenario.name, name), [])
            cells.append(_spread([run["efficiency"] for run in found]) if found else "")
            if found:
                total[name].append(median(run["efficiency"] for run in found))
        lines.append(f"| {scenario.name} | " + " | ".join(cells) + " |")
    lines.append("| mean | " + " | ".join(f"{_mean(total[name]):.2%}" for name in names) + " |")
    return lines


def _gain(runs: list[dict[str, Any]], others: list[dict[str, Any]], closed: bool) -> list[float]:
    """Ratio to the run of the same seed, above 1 where it is better."""
    by_seed = {run["seed"]: run for run in others}
    pairs = [(run, by_seed[run["seed"]]) for run in runs if run["seed"] in by_seed]
    if closed:
        return [run["rate"] / other["rate"] for run, other in pairs]
    return [other["latency_ms"]["mean"] / run["latency_ms"]["mean"] for run, other in pairs]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _spread(values: list[float]) -> str:
    return f"{median(values):.2%} ({min(values):.1%} to {max(values):.1%})"
