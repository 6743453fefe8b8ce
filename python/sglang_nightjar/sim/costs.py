"""What an iteration costs: tables in rows and requests, linear between their points."""

from bisect import bisect_right
from dataclasses import dataclass, field

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Costs:
    """Time of iterations, ns. Tables hold (count, ns) points, ascending; beyond the last the last slope holds.

    Attributes:
        target: a forward pass of the target, by rows: requests · (γ + 1).
        draft: one step of the draft, by rows: requests. γ of them are run.
        prefill: a prefill iteration, by prompt tokens, draft included.
        speculative_ns: what an iteration with γ > 0 costs beyond its rows and draft steps: draft extend, verification.
        request_ns: per request of the batch.
        context_ns: per token of context of the batch: attention.
        upkeep: an iteration of γ=0 runs a draft step, as stock SGLang does to keep the draft's KV current.
        noise: standard deviation of the logarithm of an iteration's time.
        stalls_per_s, stall_ns: now and then, by the time that iterations take, the machine does something else; for so
            long on average, exponentially distributed, however long the iteration is.
        pace, pace_s: a machine that others share: the standard deviation of the logarithm of what everything takes
            for a while, and for how many seconds such a while lasts (`Pace`).
    """

    target: Table
    draft: Table = ((1.0, 0.0),)
    prefill: Table = ((1.0, 0.0),)
    speculative_ns: float = field(default=0.0, metadata={"min": 0.0})
    request_ns: float = field(default=0.0, metadata={"min": 0.0})
    context_ns: float = field(default=0.0, metadata={"min": 0.0})
    upkeep: bool = False
    noise: float = field(default=0.02, metadata={"min": 0.0, "max": 2.0})
    stalls_per_s: float = field(default=0.0, metadata={"min": 0.0, "max": 1e6})
    stall_ns: float = field(default=0.0, metadata={"min": 0.0, "max": 1e12})
    pace: float = field(default=0.0, metadata={"min": 0.0, "max": 2.0})
    pace_s: float = field(default=3.0, metadata={"min": 0.01, "max": 1e6})

    def __post_init__(self) -> None:
        for name in ("target", "draft", "prefill"):
            rows = getattr(self, name)
            if not rows or any(len(row) != 2 or row[0] < 1 or row[1] < 0 for row in rows):
                raise ValueError(f"{name}: {rows!r} must be a list of [count from 1, ns from 0]")
            if [row[0] for row in rows] != sorted({row[0] for row in rows}):
                raise ValueError(f"{name}: the counts must ascend")

    def decode_ns(self, batch_size: int, gamma: int, context: float = 0.0) -> float:
        """Expected time of a decode iteration without noise."""
        ns = interpolate(self.target, batch_size * (gamma + 1)) + self.request_ns * batch_size
        ns += self.context_ns * context
        if gamma:
            ns += gamma * interpolate(self.draft, batch_size) + self.speculative_ns
        elif self.upkeep:
            ns += interpolate(self.draft, batch_size)
        return ns

    def prefill_ns(self, tokens: int) -> float:
        """Expected time of a prefill iteration."""
        return interpolate(self.prefill, tokens)


def interpolate(table: Table, x: float) -> float:
    """The value at ``x``; below the first point it is the first one's."""
    if x <= table[0][0] or len(table) == 1:
        return table[0][1]
    right = min(max(1, bisect_right(table, (x,))), len(table) - 1)
    (x0, y0), (x1, y1) = table[right - 1], table[right]
    return max(0.0, y0 + (y1 - y0) * (x - x0) / (x1 - x0))
