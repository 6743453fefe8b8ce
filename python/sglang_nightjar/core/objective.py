"""What a γ is worth: expected tokens per second, and what becomes of that when latency counts."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Objective:
    """Attributes:
    kind: ``throughput``: committed tokens per second. ``latency``: the same, less what long iterations make arriving
        requests wait. ``slo``: committed tokens of requests that meet ``tpot_ns``, per second.
    ttft_ns, tpot_ns: bounds; 0 is none.
    """

    kind: str = "throughput"
    ttft_ns: float = 0.0
    tpot_ns: float = 0.0


#: A request's own rate is a mean over its iterations; with fewer tokens than this it says little.
_SLO_TOKENS = 64.0
#: Where nobody can meet the bound, throughput still drains the queue.
_MISSED = 0.02


def worth(
    objective: Objective,
    sizes: np.ndarray,
    ns: np.ndarray,
    tokens: np.ndarray,
    variance: np.ndarray,
    arrivals_per_ns: float,
    prefill_share: float,
) -> np.ndarray:
    """float64[sizes, gammas]; larger is better, comparable within a row.

    ``ns`` [sizes, gammas]: an iteration. ``tokens``, ``variance`` of the tokens per request of an iteration, the
    same or [gammas]. ``arrivals_per_ns``: requests. ``prefill_share``: of the time.
    """
    rate = sizes[:, None] * tokens / ns
    if objective.kind == "latency":
        # B requests wait an iteration, and those that arrive meanwhile wait half of it: time waited per token.
        return np.asarray(rate / (1.0 + arrivals_per_ns * ns / (2.0 * sizes[:, None])))
    if objective.kind == "slo" and objective.tpot_ns > 0:
        wall = ns / max(0.05, 1.0 - prefill_share)
        needed = wall / objective.tpot_ns
        deviation = np.sqrt(variance * tokens / _SLO_TOKENS) + 1e-3
        z = np.clip((tokens - needed) / deviation, -30.0, 30.0)
        # The logistic curve that is nearest to the normal distribution's.
        return np.asarray(rate * np.maximum(_MISSED, 1.0 / (1.0 + np.exp(-1.702 * z))))
    return np.asarray(rate)
