"""The table and the picture of a run of the control loop."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any


def table(result: dict[str, Any]) -> str:
    """Markdown: tokens/s over the whole profile and by number of clients, medians over rounds with their extremes."""
    runs = result["runs"]
    names = list(dict.fromkeys(run["arm"] for run in runs))
    clients = sorted({phase["clients"] for run in runs for phase in run["phases"]})
    lines = [
        "| | whole profile | " + " | ".join(f"{n} client{'s' * (n > 1)}" for n in clients) + " | failed |",
        "| --- |" + " --- |" * (len(clients) + 2),
    ]
    for name in names:
        own = [run for run in runs if run["arm"] == name]
        cells = [_spread([run["rate"] for run in own])]
        cells += [_spread([_rate_at(run, number) for run in own]) for number in clients]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {sum(run['failed'] for run in own)} |")
    return "\n".join(lines)


def _rate_at(run: dict[str, Any], clients: int) -> float:
    """Tokens/s over all phases with so many clients."""
    pairs = [
        (p["seconds"], rate) for p, rate in zip(run["phases"], run["rates"], strict=True) if p["clients"] == clients
    ]
    return sum(seconds * rate for seconds, rate in pairs) / sum(seconds for seconds, _ in pairs)


def _spread(values: list[float]) -> str:
    middle = f"{statistics.median(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f} to {max(values):.1f})"


def picture(timeline: dict[str, Any], runs: list[dict[str, Any]], path: Path) -> None:
    """Batch size, γ, throughput and accepted length over time, round after round, from the decision log."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    panels = (
        ("batch_size", "requests\ndecoded together"),
        ("gamma", "γ"),
        ("tokens_per_s", "tokens/s"),
        ("accepted_length", "accepted\nlength"),
    )
    length = sum(phase["seconds"] for phase in runs[0]["phases"])
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 7), sharex=True, layout="constrained")
    for panel, (key, label) in zip(axes, panels, strict=True):
        for number, part in enumerate(timeline["rounds"]):
            times = [number * length + second["at"] for second in part["seconds"]]
            panel.plot(times, [second[key] for second in part["seconds"]], color="#1f6feb", linewidth=1.2)
            panel.axvline(number * length, color="black", linewidth=0.5, alpha=0.4)
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
        panel.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("seconds of load; the lines divide rounds")
    figure.savefig(path)
    plt.close(figure)


def write_report(result: dict[str, Any], folder: Path) -> None:
    """``table.md``, and a picture for each arm that has a decision log, beside the results."""
    (folder / "table.md").write_text(table(result) + "\n")
    for timeline in result["timelines"]:
        runs = [run for run in result["runs"] if run["arm"] == timeline["arm"]]
        picture(timeline, runs, folder / f"{timeline['arm'].replace(' ', '_')}.svg")
