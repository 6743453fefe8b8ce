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
    text = "\n".join([*_stationary(runs), "", *_moving(runs), ""])
    (out / "table.md").write_text(text)
    return text


def loss(run: dict[str, Any], first: int, last: int | None = None) -> float:
    """Share of the oracle's tokens that was lost after iteration ``first``, up to ``last``."""
    history = [(0, 0.0, 0.0), *run["history"]]
    start = next(row for row in history if row[0] >= first)
    end = history[-1] if last is None else next(row for row in history if row[0] >= last)
    return 1 - (end[1] - start[1]) / (end[2] - start[2])


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
    against = [
        "",
        "| scenario | tokens: model against off | against the best static γ | tokens against the oracle's run |",
    ]
    against.append("| --- | --- | --- | --- |")
    for scenario in moving():
        cells = []
        for name in names:
            found = runs.get((scenario.name, name), [])
            cells.append(_spread([run["efficiency"] for run in found]) if found else "")
            if found:
                total[name].append(median(run["efficiency"] for run in found))
        lines.append(f"| {scenario.name} | " + " | ".join(cells) + " |")
        against += _against(runs, scenario.name, scenario.closed)
    lines.append("| mean | " + " | ".join(f"{_mean(total[name]):.2%}" for name in names) + " |")
    return [*lines, *against]


def _against(runs: Runs, scenario: str, closed: bool) -> list[str]:
    model = runs.get((scenario, "model"), [])
    off = runs.get((scenario, "off"), [])
    statics = {gamma: runs.get((scenario, f"static {gamma}"), []) for gamma in STATICS}
    oracle = runs.get((scenario, "oracle"), [])
    if not (model and off and oracle and all(statics.values())):
        return []
    # In an open loop everybody serves the same requests: mean latency is what differs.
    best = max(statics.items(), key=lambda item: median(_gain(item[1], off, closed)))
    return [
        f"| {scenario}{'' if closed else ' (mean latency)'} | {_spread(_gain(model, off, closed))} | "
        f"{_spread(_gain(model, best[1], closed))} (γ={best[0]}) | {_spread(_gain(model, oracle, closed))} |"
    ]


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
