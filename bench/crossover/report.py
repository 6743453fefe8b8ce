"""The table and the picture of a crossover run."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any


def summary(result: dict[str, Any]) -> dict[tuple[int, int], dict[str, float]]:
    """Per (batch, γ): median tokens/s, its smallest and largest, and the accepted length with the bonus token."""
    out = {}
    for cell in result["cells"]:
        rates = [r["tokens"] / r["seconds"] for r in cell["runs"]]
        steps = sum(r["verify_steps"] for r in cell["runs"])
        out[cell["batch"], cell["gamma"]] = {
            "rate": statistics.median(rates),
            "low": min(rates),
            "high": max(rates),
            "length": sum(r["decoded"] for r in cell["runs"]) / steps if steps else 1.0,
        }
    return out


def paired_ratio(result: dict[str, Any], batch: int, gamma: int) -> tuple[float, float, float]:
    """Throughput of `gamma` over that of γ = 0, repetition by repetition: median, smallest, largest."""
    runs = {c["gamma"]: c["runs"] for c in result["cells"] if c["batch"] == batch}
    ratios = [
        (a["tokens"] / a["seconds"]) / (b["tokens"] / b["seconds"]) for a, b in zip(runs[gamma], runs[0], strict=True)
    ]
    return statistics.median(ratios), min(ratios), max(ratios)


def table(result: dict[str, Any]) -> str:
    """Markdown: rows are batch sizes, columns γ; the ratio to γ = 0 is the median over paired repetitions."""
    cells = summary(result)
    batches, gammas = sorted({b for b, _ in cells}), sorted({g for _, g in cells})
    lines = [
        "| batch | " + " | ".join(f"γ={g}" for g in gammas) + " | best |",
        "| --- |" + " --- |" * (len(gammas) + 1),
    ]
    for b in batches:
        row = []
        for g in gammas:
            text = f"{cells[b, g]['rate']:.1f} tok/s"
            if g and 0 in gammas:
                middle, low, high = paired_ratio(result, b, g)
                text += f", ×{middle:.2f} ({low:.2f} to {high:.2f}), length {cells[b, g]['length']:.2f}"
            row.append(text)
        best = max(gammas, key=lambda g: cells[b, g]["rate"])
        lines.append(f"| {b} | " + " | ".join(row) + f" | γ={best} |")
    return "\n".join(lines)


def picture(result: dict[str, Any], path: Path) -> None:
    """Throughput relative to no speculation against batch size, one line per γ."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    cells = summary(result)
    batches, gammas = sorted({b for b, _ in cells}), sorted({g for _, g in cells})
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.axhline(1.0, color="black", linewidth=1.2, label="no speculation")
    for number, gamma in enumerate(g for g in gammas if g):
        middle, low, high = zip(*(paired_ratio(result, b, gamma) for b in batches), strict=True)
        colour = plt.cm.viridis(number / max(1, len(gammas) - 2))
        axes.plot(batches, middle, marker="o", color=colour, label=f"γ = {gamma}")
        axes.fill_between(batches, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(b) for b in batches])
    axes.set_xlabel("requests decoded together")
    axes.set_ylabel("throughput, no speculation = 1")
    axes.legend(frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    plt.close(figure)


def write_report(result: dict[str, Any], folder: Path) -> None:
    """``table.md`` and ``crossover.svg`` beside the results."""
    (folder / "table.md").write_text(table(result) + "\n")
    picture(result, folder / "crossover.svg")
