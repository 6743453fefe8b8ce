"""The pictures of a report, as SVG. Needs matplotlib, which only benchmarks need (requirements/bench.txt)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from bench.serve.arms import NONE, SGLANG_ADAPTIVE
from bench.serve.claim import subjects
from bench.serve.results import Results, Run

#: Who stands out: ours in blue and green, who they are compared with in strong colours, fixed γ in greys.
_COLOURS = {
    NONE: "#222222",
    SGLANG_ADAPTIVE: "#d1495b",
    "nightjar": "#1f6feb",
    "model": "#0a7d4b",
    "ema": "#e8a33d",
    "off": "#7a5195",
}
_GREYS = ("#a8a8a8", "#989898", "#888888", "#787878", "#686868")
_DASHES = ("solid", "dashed", "dashdot", "dotted", (0, (6, 1, 1, 1, 1, 1)))
_OTHERS = ("#2a9d8f", "#8f5aa8", "#b5651d", "#4c956c")
#: s; a second alone is too noisy to be read.
_SMOOTH = 3


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Writes the pictures and returns their paths, in the order in which a report shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for scenario in results.scenarios:
        if not results.arms(scenario):
            continue
        made += [_timeline(results, scenario, folder), _latencies(results, scenario, folder)]
        if scenario in ("sweep", "fixed"):
            made.append(_by_rate(results, scenario, folder))
    return made


def _timeline(results: Results, scenario: str, folder: Path) -> Path:
    """Load, γ, accepted length, throughput and KV cache over time, means over repetitions."""
    figure, axes = plt.subplots(5, 1, figsize=(9, 11), sharex=True, layout="constrained")
    load, gamma, length, throughput, cache = axes
    for arm in results.arms(scenario):
        runs = results.counted(scenario, arm)
        style = _style(results, arm)
        times, tokens = _mean_series([run["seconds"] for run in runs], "tokens")
        throughput.plot(times, tokens, **style)
        times, inside = _mean_series([run["seconds"] for run in runs], "open")
        load.plot(times, inside, **style)
        samples = [run["server_side"]["load"]["seconds"] for run in runs]
        cache.plot(*_mean_series(samples, "kv_used"), **style)
        cache.plot(*_mean_series(samples, "kv_capacity"), **style | {"linestyle": ":", "label": "_"})
        logs = [log["seconds"] for run in runs if (log := run["server_side"].get("log"))]
        if logs and not arm.startswith("static"):
            gamma.plot(*_mean_series(logs, "gamma"), **style)
            length.plot(*_mean_series(logs, "accepted_length"), **style)
    due = results.counted(scenario, results.arms(scenario)[0])
    if results.is_open(scenario):
        times, arrivals = _mean_series([run["seconds"] for run in due], "due")
        other = load.twinx()
        other.fill_between(times, arrivals, color="#1f6feb", alpha=0.12, linewidth=0, step="mid")
        other.set_ylabel("arrivals/s (shaded)")
        other.set_ylim(bottom=0)
        other.spines[["top"]].set_visible(False)
    load.set_ylabel("requests in the server")
    gamma.set_ylabel("γ")
    length.set_ylabel("accepted length")
    throughput.set_ylabel("tokens/s")
    cache.set_ylabel("KV tokens: used,\ncapacity (dotted)")
    cache.set_xlabel("seconds")
    for panel in axes:
        _plain(panel)
        # An accepted length is never below 1.
        panel.set_ylim(bottom=1 if panel is length and panel.lines else 0)
        for phase in due[0]["phases"][1:]:
            panel.axvline(phase["start"], color="black", linewidth=0.5, alpha=0.3)
    for phase in due[0]["phases"]:
        load.text(phase["start"], 1.02, phase["name"], fontsize=8, transform=load.get_xaxis_transform())
    return _save(figure, throughput, folder / f"{scenario}-timeline.svg", len(results.arms(scenario)))


def _latencies(results: Results, scenario: str, folder: Path) -> Path:
    """What part of the requests took longer than so long: the tail is what people complain about."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 4), sharey=True, layout="constrained")
    names = (("ttft_s", "time to first token, s"), ("tpot_s", "time per token, s"), ("latency_s", "latency, s"))
    for panel, (key, label) in zip(axes, names, strict=True):
        for arm in results.arms(scenario):
            quantiles = [run["quantiles"][key] for run in results.counted(scenario, arm) if run["quantiles"][key]]
            if quantiles:
                values = [sum(column) / len(column) for column in zip(*quantiles, strict=True)]
                share = [1 - i / (len(values) - 1) for i in range(len(values))]
                panel.plot(values[:-1], share[:-1], **_style(results, arm))
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel(label)
        _plain(panel)
    axes[0].set_ylabel("part of the requests that took longer")
    return _save(figure, axes[-1], folder / f"{scenario}-latency.svg", len(results.arms(scenario)))


def _by_rate(results: Results, scenario: str, folder: Path) -> Path:
    """Throughput and mean latency against the rate, or the number of clients, for every arm."""
    names = results.phases(scenario)
    at = [float(name.split("/")[0].split()[0]) for name in names]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for panel, read, label in zip(
        axes,
        (lambda part: part["tokens_per_s"], lambda part: part["latency_s"] and part["latency_s"]["mean"]),
        ("tokens/s", "mean latency, s"),
        strict=True,
    ):
        for arm in results.arms(scenario):
            rows = [_phase_values(results.counted(scenario, arm), name, read) for name in names]
            middle = [sum(row) / len(row) if row else math.nan for row in rows]
            style = _style(results, arm)
            panel.plot(at, middle, marker="o", markersize=3, **style)
            low, high = ([pick(row) if row else math.nan for row in rows] for pick in (min, max))
            panel.fill_between(at, low, high, color=style["color"], alpha=0.1, linewidth=0)
        panel.set_xscale("log", base=2)
        panel.set_xticks(at, [f"{value:g}" for value in at])
        panel.set_xlabel("requests/s" if results.is_open(scenario) else "clients")
        panel.set_ylabel(label)
        _plain(panel)
    axes[0].set_ylim(bottom=0)
    # A fixed γ that is too large takes many times as long: on a linear axis the others lie on top of each other.
    axes[1].set_yscale("log")
    for choose in (axes[1].yaxis.set_major_formatter, axes[1].yaxis.set_minor_formatter):
        choose("{x:g}")
    return _save(figure, axes[1], folder / f"{scenario}-by-load.svg", len(results.arms(scenario)))


def _phase_values(runs: Sequence[Run], name: str, read: Callable[[dict[str, Any]], float | None]) -> list[float]:
    return [value for run in runs if (value := read(run["by_phase"][name])) is not None]


def _mean_series(runs: Sequence[Sequence[dict[str, Any]]], key: str) -> tuple[list[float], list[float]]:
    """Per second the mean over those runs that have it, smoothed over three seconds; a hole where none has it."""
    by_second: dict[int, list[float]] = {}
    for seconds in runs:
        for second in seconds:
            if key in second:
                by_second.setdefault(int(second["at"]), []).append(second[key])
    values = {at: sum(found) / len(found) for at, found in by_second.items()}
    times, means, half = [], [], _SMOOTH // 2
    for at in range(min(values, default=0), max(values, default=-1) + 1):
        near = [values[t] for t in range(at - half, at + half + 1) if t in values]
        times.append(at + 0.5)
        means.append(sum(near) / len(near) if near else math.nan)
    return times, means


def _style(results: Results, arm: str) -> dict[str, Any]:
    arms = list(results.labels)
    static = [a for a in arms if "static-" in a]
    others = [a for a in arms if a not in _COLOURS and a not in static]
    dashes: Any = "solid"
    if arm in static:
        place = static.index(arm) % len(_GREYS)
        colour, dashes = _GREYS[place], _DASHES[place]
    else:
        colour = _COLOURS.get(arm) or _OTHERS[others.index(arm) % len(_OTHERS)]
    width = 2.2 if arm in subjects(results) else 1.2
    order = 3 if width > 2 else 2
    label = results.labels[arm].strip("`")
    return {"color": colour, "linewidth": width, "linestyle": dashes, "label": label, "zorder": order}


def _plain(panel: Any) -> None:
    panel.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, panel: Any, path: Path, arms: int) -> Path:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, arms), frameon=False)
    # Without a date the same results make the same file.
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path
