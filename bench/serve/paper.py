"""What the paper reports, beside what came out here: arXiv 2512.22420, figures as in its versions 1 to 5."""

from __future__ import annotations

from bench.serve import tables
from bench.serve.arms import NONE
from bench.serve.claim import gain, mean_gain
from bench.serve.results import Results

#: Against whom, the arm here that is nearest to it, and the gain in throughput that the paper reports.
_ROWS = (
    ("no speculation", NONE, 0.2729),
    ("static γ=3", "static-3", 0.0832),
    ("TETRIS", None, 0.0739),
    ("BanditSpec", "ucb", 0.1976),
    ("DSD", "goodput", 0.2289),
)
CONDITIONS = (
    "The paper's conditions (arXiv 2512.22420, versions 1 to 5): a patched vLLM 0.8.2; R1-Distill-Qwen-7B with a draft "
    "of 0.5B on an RTX 4090, Vicuna-13B with 68M on an A100 of 40 GB, Qwen2.5-32B with 0.5B on two L20; ShareGPT, "
    "Alpaca, Spec-Bench (480 prompts each) and the Azure LLM trace; Poisson arrivals at varied rates; five runs "
    "averaged; averages over its pairs and data. Ours: the conditions above. Other models, machine, engine and "
    "loads, so the rows stand beside each other and are not the same figure; `ucb` and `goodput` are our "
    "implementations of what BanditSpec and DSD describe."
)


def beside(results: Results, ours: list[str]) -> str:
    """The paper's rows, and the mean gain of each of ``ours`` over the dynamic loads."""
    rows = []
    for label, other, reported in _ROWS:
        found = [_shown(mean_gain(results, arm, other)) if other and arm != other else "–" for arm in ours]
        near = f" (here `{other}`)" if other in ("ucb", "goodput") else ""
        rows.append([f"against {label}{near}", f"+{reported:.2%} throughput", *found])
    reported_latency = "up to 12.90% less (version 3; 20.18% in versions 4 and 5)"
    rows.append(["mean latency against static γ=3", reported_latency, *(_latency(results, arm) for arm in ours)])
    return tables.table(["", "paper", *(f"{arm}, here" for arm in ours)], rows)


def _latency(results: Results, arm: str) -> str:
    """The best of the open loops, as the paper's is."""
    both = [s for s in results.scenarios if results.is_open(s) and {arm, "static-3"} <= set(results.arms(s))]
    gains = {s: gain(results, s, arm, "static-3") for s in both}
    if not gains:
        return "–"
    best = max(gains, key=lambda s: gains[s])
    return f"up to {gains[best]:.2%} less ({best})"


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2%}"
