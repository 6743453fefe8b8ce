"""``ema``: SGLang's own adaptive rule, on accepted length alone.

Follows SGLang 0.5.17, ``srt/speculative/adaptive_spec_params.py``, with its default slots and coefficients: each slot
(a range of batch sizes) smooths the accepted draft tokens per request, and every few iterations moves to a smaller γ
when that falls under the next smaller candidate, or to a larger one when it reaches what the present one can give.

Departs: slots are found by the batch size itself, not by the CUDA graph's; a slot's candidates are those that the
scheduler can run; an iteration that ran another γ than the slot's (a plan was on its way) changes nothing.
"""

from dataclasses import dataclass, field
from typing import Any

from sglang_nightjar.core import gammas
from sglang_nightjar.core.messages import MAX_BATCH, MAX_GAMMA, Hello, Telemetry
from sglang_nightjar.core.policy import Decision, Policy, nearest_candidate

_SLOTS: dict[str, Any] = {
    "1": {"candidate_steps": [1, 3, 7], "down_hysteresis": -0.25},
    "8": {"candidate_steps": [0, 1, 3], "down_hysteresis": 0.0},
    "32": {"candidate_steps": [0, 1], "down_hysteresis": 0.0},
    "64": {"candidate_steps": [0], "down_hysteresis": 0.0},
}
_SLOT_KEYS = {"candidate_steps", "up_hysteresis", "down_hysteresis"}


@dataclass(frozen=True)
class EmaParams:
    """SGLang's names and defaults.

    Attributes:
        slots: by smallest batch size, ``{candidate_steps, up_hysteresis, down_hysteresis}``.
        ema_alpha: weight of an iteration.
        update_interval: iterations of a slot between two decisions.
        warmup_batches: iterations of a slot before its first decision.
    """

    slots: dict[str, Any] = field(default_factory=lambda: _SLOTS)
    ema_alpha: float = field(default=0.2, metadata={"min": 0.0, "max": 1.0})
    update_interval: int = field(default=5, metadata={"min": 1, "max": 1_000_000})
    warmup_batches: int = field(default=10, metadata={"min": 0, "max": 1_000_000})

    def __post_init__(self) -> None:
        if not self.slots or len(self.slots) > 64:
            raise ValueError("slots: there must be 1 to 64")
        for key, slot in self.slots.items():
            if not (str(key).isdigit() and 1 <= int(key) <= MAX_BATCH):
                raise ValueError(f"slots: {key!r} must be a batch size from 1 to {MAX_BATCH}")
            if not isinstance(slot, dict) or not slot.keys() <= _SLOT_KEYS:
                raise ValueError(
                    f"slots.{key}: {slot!r} must be a mapping with keys among {', '.join(sorted(_SLOT_KEYS))}"
                )
            steps = slot.get("candidate_steps")
            if (
                not isinstance(steps, list)
                or not steps
                or not all(type(s) is int and 0 <= s <= MAX_GAMMA for s in steps)
            ):
                raise ValueError(f"slots.{key}.candidate_steps: {steps!r} must be a list of integers, 0 to {MAX_GAMMA}")
            for name in slot.keys() - {"candidate_steps"}:
                if type(slot[name]) not in (int, float) or not -MAX_GAMMA <= slot[name] <= MAX_GAMMA:
                    raise ValueError(
                        f"slots.{key}.{name}: {slot[name]!r} must be a number, -{MAX_GAMMA} to {MAX_GAMMA}"
                    )


class Slot:
    """A range of batch sizes: smoothed accepted length, and the γ that it led to."""

    def __init__(self, candidates: list[int], start: int, up: float, down: float) -> None:
        self.candidates = candidates
        self.gamma = start if start in candidates else candidates[len(candidates) // 2]
        # Neutral: it neither rises nor falls from here.
        self.accepted = float(self.gamma - 1)
        self.iterations = 0
        self.up, self.down = up, down

    def observe(self, accepted: float, params: EmaParams) -> bool:
        """Take one iteration's accepted tokens per request; True if γ changed."""
        if self.gamma > 0:
            self.accepted += params.ema_alpha * (accepted - self.accepted)
        self.iterations += 1
        due = self.iterations - params.warmup_batches
        if due <= 0 or due % params.update_interval:
            return False
        before, self.gamma = self.gamma, self._next()
        return self.gamma != before

    def _next(self) -> int:
        index = self.candidates.index(self.gamma)
        if self.gamma == 0:
            # Nothing was drafted, so nothing is known: try the smallest γ.
            index = min(index + 1, len(self.candidates) - 1)
            if self.accepted < 0:
                self.accepted = float(self.candidates[index] - 1)
            return self.candidates[index]
        start = index
        while (
            index > 0
            and self.accepted
            <= max(self.candidates[index - 1] - 0.5, 0.5 * (self.candidates[index - 1] == 0)) + self.down
        ):
            index -= 1
        if index == start:
            while index < len(self.candidates) - 1 and self.accepted > self.candidates[index] - 0.5 + self.up:
                index += 1
        return self.candidates[index]


class Ema(Policy):
    """Every scheduler has its own slots."""

    name = "ema"
    Params = EmaParams
    estimates_of = "accepted draft tokens per request"

    def __init__(self, params: Any = None, seed: int = 0) -> None:
        super().__init__(params, seed)
        self.starts = sorted(int(key) for key in self.params.slots)
        self.schedulers: dict[str, list[Slot]] = {}

    def hello(self, hello: Hello) -> Decision:
        slots, known = [self._slot(start, hello) for start in self.starts], self.schedulers.get(hello.sender, [])
        if [slot.candidates for slot in known] == [slot.candidates for slot in slots]:
            return self._decision(hello.sender, "as before")
        self.schedulers[hello.sender] = slots
        return self._decision(hello.sender, "slots at their start")

    def telemetry(self, sender: str, record: Telemetry) -> Decision | None:
        slots = self.schedulers.get(sender)
        if slots is None or record.batch_size < 1 or len(record.accepted) != record.gamma:
            return None
        index = gammas.bucket_of(self.starts, record.batch_size)
        slot = slots[index]
        accepted = sum(record.accepted) / record.batch_size
        if record.gamma != slot.gamma or not 0 <= accepted <= record.gamma:
            return None
        if not slot.observe(accepted, self.params):
            return None
        reason = (
            f"batch {self.starts[index]} and above: {record.gamma} -> {slot.gamma}, accepted length {slot.accepted:.2f}"
        )
        return self._decision(sender, reason)

    def goodbye(self, sender: str) -> None:
        self.schedulers.pop(sender, None)

    def estimates(self) -> dict[str, dict[str, dict[str, float]]]:
        """Smoothed accepted draft tokens per request, by scheduler, slot and γ."""
        return {
            sender: {
                str(start): {str(s.gamma): round(s.accepted, 3)} for start, s in zip(self.starts, slots, strict=True)
            }
            for sender, slots in self.schedulers.items()
        }

    def _slot(self, start: int, hello: Hello) -> Slot:
        slot = self.params.slots.get(str(start), self.params.slots.get(start))
        wanted = sorted(set(slot["candidate_steps"]))
        able = [gamma for gamma in wanted if gamma in hello.candidates]
        able = able or [nearest_candidate(wanted[0], hello.candidates)]
        return Slot(able, hello.start_gamma, slot.get("up_hysteresis", 0.0), slot.get("down_hysteresis", -0.25))

    def _decision(self, sender: str, reason: str) -> Decision:
        return Decision(gammas.from_starts(self.starts, [slot.gamma for slot in self.schedulers[sender]]), reason)
