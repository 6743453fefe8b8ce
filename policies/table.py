"""``table``: γ by batch size from a table, in our form or as vLLM and TensorRT-LLM write it.

params: {ranges: [[1, 4, 5], [5, 16, 2], [17, null, 0]]}    # first, last (null: and above), γ
params: {vllm: [[1, 4, 5], [5, 16, 2]]}                     # lo, hi, K; 0 elsewhere
params: {trtllm: {4: 5, 16: 2}}                             # up to this batch size, this length; above the last, 0
"""

from dataclasses import dataclass
from typing import Any

from sglang_nightjar.core import gammas
from sglang_nightjar.core.messages import MAX_BATCH, MAX_GAMMA, Hello
from sglang_nightjar.core.policy import Decision, Policy, nearest_candidate


@dataclass(frozen=True)
class TableParams:
    """Exactly one of the forms."""

    ranges: tuple[Any, ...] | None = None
    vllm: tuple[Any, ...] | None = None
    trtllm: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.table()

    def table(self) -> gammas.Ranges:
        """The table in our form. Raises ValueError."""
        given = [name for name in ("ranges", "vllm", "trtllm") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of ranges, vllm, trtllm must be set, not {' and '.join(given) or 'none'}")
        if self.vllm is not None:
            rows: Any = gammas.from_vllm(self.vllm)
        elif self.trtllm is not None:
            rows = gammas.from_trtllm(self.trtllm)
        else:
            rows = self.ranges
        if (wrong := gammas.fault(rows, MAX_GAMMA, MAX_BATCH)) is not None:
            raise ValueError(f"{given[0]}: {wrong}")
        return tuple((first, last, gamma) for first, last, gamma in rows)


class Table(Policy):
    """Looks γ up. A γ that a scheduler cannot run becomes the next smaller one that it can."""

    name = "table"
    Params = TableParams

    def hello(self, hello: Hello) -> Decision:
        table = self.params.table()
        fitted = [nearest_candidate(gamma, hello.candidates) for _, _, gamma in table]
        changed = sorted({gamma for _, _, gamma in table} - set(fitted))
        reason = "as the table says" + (f"; no candidates: {changed}" if changed else "")
        return Decision(gammas.from_starts([first for first, _, _ in table], fitted), reason)
